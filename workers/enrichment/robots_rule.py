"""What a robots.txt says about one URL. Runs in a member of the pool: its patterns are other people's."""

from __future__ import annotations

from protego import Protego


def may_fetch(body: bytes, url: str, user_agent: str) -> bool:
    """Whether the rules for our product token, or those for everybody, let us read this URL (RFC 9309)."""
    rules = Protego.parse(body.decode("utf-8", "replace"))
    return bool(rules.can_fetch(url, user_agent))
