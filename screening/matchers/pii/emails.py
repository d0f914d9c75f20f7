"""E-mail addresses: the usual form of RFC 5321, with letters of all scripts (RFC 6531)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_MOST_LOCAL: Final = 64
_MOST_DOMAIN: Final = 253
_SYMBOLS: Final = frozenset("!#$%&'*+/=?^_`{|}~.-")
"""Symbols of a local part without quotes."""

_domain = re.compile(r"[^\W_](?:[\w-]{0,61}[^\W_])?(?:\.[^\W_](?:[\w-]{0,61}[^\W_])?)+")
_end_of_domain = re.compile(r"\.(?:[^\W\d_]{2,}|xn--[a-z0-9-]+)$", re.IGNORECASE)


def emails(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of e-mail addresses. A bounded number of characters is read on both sides of each `@`."""
    done = 0
    place = text.find("@")
    while place >= 0:
        start = _start(text, place, done)
        domain = _domain.match(text, place + 1, place + 1 + _MOST_DOMAIN) if start < place else None
        if domain is not None and _end_of_domain.search(domain[0]):
            done = domain.end()
            yield start, done
        place = text.find("@", place + 1)


def _start(text: str, end: int, least: int) -> int:
    """Return the beginning of the local part that ends here; `end` itself if there is none."""
    start = end
    while start > max(least, end - _MOST_LOCAL) and (text[start - 1].isalnum() or text[start - 1] in _SYMBOLS):
        start -= 1
    while start < end and not text[start].isalnum() and text[start] != "_":
        start += 1  # skips an opening quote or dash in front of the address
    return end if text[end - 1 : end] == "." else start
