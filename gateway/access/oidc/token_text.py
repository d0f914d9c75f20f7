"""The form of a signed token, in a module of its own: a gateway without an issuer imports nothing else of OIDC."""

from __future__ import annotations

import re

MOST_TOKEN_BYTES = 8192
_PARTS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def is_token(credential: str) -> bool:
    """True if the text has the three parts of a signed token. An unsigned token lacks the third, the signature."""
    return len(credential) <= MOST_TOKEN_BYTES and _PARTS.fullmatch(credential) is not None
