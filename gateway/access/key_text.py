"""The text of an API key: `pk_<id>_<secret><checksum>`.

    id         16 hexadecimal digits, public: it names the key in lists, logs and the audit
    secret     256 random bits as 43 digits of base62
    checksum   CRC32 of all before it as 6 digits of base62

By the checksum, secret scanners and clients find a mistyped or truncated key without asking the gateway.
Source: GitHub's blog, "Behind GitHub's new authentication token formats". GitHub's checksum covers the secret alone.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_BYTES = 8
_SECRET_BYTES = 32
_SECRET_DIGITS = 43
_CHECKSUM_DIGITS = 6

PREFIX = "pk_"
PATTERN = re.compile(r"pk_(?P<id>[0-9a-f]{16})_[0-9A-Za-z]{43}[0-9A-Za-z]{6}")


def new_key() -> tuple[str, str]:
    """Return a new key's id and text."""
    identifier = secrets.token_hex(_ID_BYTES)
    secret = _base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_DIGITS)
    start = f"{PREFIX}{identifier}_{secret}"
    return identifier, start + checksum(start)


def checksum(start: str) -> str:
    """Return the checksum of all but the last six characters of a key's text."""
    return _base62(zlib.crc32(start.encode()), _CHECKSUM_DIGITS)


def id_of(text: str) -> str | None:
    """Return the id in a key's text; None if the text is no key, or its checksum is wrong."""
    found = PATTERN.fullmatch(text)
    if found is None or checksum(text[:-_CHECKSUM_DIGITS]) != text[-_CHECKSUM_DIGITS:]:
        return None
    return found["id"]


def _base62(number: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        number, digit = divmod(number, 62)
        text = _BASE62[digit] + text
    return text
