"""Key material: random bytes, their length, and their notations."""

from __future__ import annotations

import base64
import os

from pydantic import SecretStr

MASTER_BYTES = 32
SECRET_BYTES = 32
SEED_BYTES = 32


def of_length(encoded: SecretStr, length: int) -> SecretStr:
    """The key itself. Raises ValueError, which never shows it, where it is not so many bytes in base64."""
    try:
        decoded = base64.b64decode(encoded.get_secret_value(), validate=True)
    except ValueError:
        raise ValueError("not base64") from None
    if len(decoded) != length:
        raise ValueError(f"not {length} bytes in base64")
    return encoded


def random_key(length: int) -> SecretStr:
    """So many new bytes from the system's random source, in base64."""
    return SecretStr(base64_of(os.urandom(length)))


def base64_of(value: bytes) -> str:
    """Base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(value).decode()


def base64url(value: bytes) -> str:
    """The URL-safe alphabet without padding, as JWKs have it (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
