"""What a robots.txt says about one URL. Runs in a member of the pool: its patterns are other people's."""

from __future__ import annotations

import math
from functools import lru_cache

from protego import Protego


def may_fetch(body: bytes, url: str, user_agent: str) -> bool:
    """Whether the rules for our product token, or those for everybody, let us read this URL (RFC 9309)."""
    return bool(_parsed(body).can_fetch(url, user_agent))


def crawl_delay_seconds(body: bytes, user_agent: str) -> float:
    """The pause between two pages that the site asks us for; 0 where it asks for none. Not in the RFC, and common."""
    delay = _parsed(body).crawl_delay(user_agent)
    return float(delay) if delay is not None and math.isfinite(delay) and delay > 0 else 0.0


@lru_cache(maxsize=16)
def _parsed(body: bytes) -> Protego:
    return Protego.parse(body.decode("utf-8-sig", "replace"))  # a mark before the first line would hide it
