"""Applies the rules of a robots.txt to one URL. Runs in a member of the pool, since the patterns are untrusted."""

from __future__ import annotations

import math
from functools import lru_cache

from protego import Protego


def may_fetch(body: bytes, url: str, user_agent: str) -> bool:
    """True if robots.txt allows this URL, by the rules for `user_agent` or else for all agents (RFC 9309)."""
    return bool(_parsed(body).can_fetch(url, user_agent))


def crawl_delay_seconds(body: bytes, user_agent: str) -> float:
    """Return the site's `Crawl-delay` for `user_agent`, or 0. The directive is common, but not part of RFC 9309."""
    delay = _parsed(body).crawl_delay(user_agent)
    return float(delay) if delay is not None and math.isfinite(delay) and delay > 0 else 0.0


@lru_cache(maxsize=16)
def _parsed(body: bytes) -> Protego:
    # The codec drops a byte order mark, which would hide the first line.
    return Protego.parse(body.decode("utf-8-sig", "replace"))
