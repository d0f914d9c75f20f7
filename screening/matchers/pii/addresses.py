"""Public IP addresses, of version 4 (RFC 1123) and 6 (RFC 4291). Private addresses identify no person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

_version_4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w]|\.[0-9])")
_version_6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{4,39}(?![\w:])")
_of_software = re.compile(r"(?:version|release|build|firmware|ver\.?|section|chapter|§)[ :=]{0,3}$", re.IGNORECASE)
"""Words after which four numbers with dots are a version or a section, and no address."""
_LOOKED_BACK: Final = 16


def addresses(text: str) -> Iterator[tuple[int, int]]:
    """Return the places of public addresses."""
    for found in _version_4.finditer(text):
        if _is_public(found[0]) and not _of_software.search(text[max(0, found.start() - _LOOKED_BACK) : found.start()]):
            yield found.span()
    for found in _version_6.finditer(text):
        if found[0].count(":") >= 2 and any(map(str.isdigit, found[0])) and _is_public(found[0]):
            yield found.span()


@lru_cache(maxsize=4096)
def _is_public(written: str) -> bool:
    try:
        return ip_address(written).is_global
    except ValueError:
        return False
