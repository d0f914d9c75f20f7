"""Key material: random bytes, derived bytes, their length, and their notations."""

from __future__ import annotations

import base64
import os
from typing import Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_sign_seed_keypair
from pydantic import SecretStr

KEY_BYTES = 32
"""Length of a master, of a derived secret, and of an ed25519 seed."""

Purpose = Literal["webhook-secret", "webhook-ed25519", "endpoint-secret"]


def derived(master: SecretStr, purpose: Purpose, owner: str, version: int) -> bytes:
    """Derive 32 bytes for one purpose and owner from a master in base64, by HKDF-SHA256 (RFC 5869).

    The owner is a tenant, or an endpoint as `<tenant>/<endpoint>`; neither name has a slash.

    Two different keys never share an HKDF `info`: the purpose at its start has no slash, and the version at its end is
    a number.
    """
    info = f"postback/{purpose}/{owner}/{version}".encode()
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(bytes_of(master))


def ed25519_private(seed: bytes) -> bytes:
    """Return the private key in libsodium's form, 64 bytes: the seed (32 bytes) and the public key."""
    return crypto_sign_seed_keypair(seed)[1]


def of_length(encoded: SecretStr, shortest: int, longest: int) -> SecretStr:
    """Return the key if it is base64 of an allowed length. Else raises ValueError, without showing the key."""
    try:
        decoded = base64.b64decode(encoded.get_secret_value(), validate=True)
    except ValueError:
        raise ValueError("not base64") from None
    if not shortest <= len(decoded) <= longest:
        raise ValueError(f"not {shortest} to {longest} bytes in base64")
    return encoded


def random_key() -> SecretStr:
    """Return 32 new bytes from the system's random source, in base64."""
    return SecretStr(base64_of(os.urandom(KEY_BYTES)))


def bytes_of(encoded: SecretStr) -> bytes:
    """Return the bytes of a key in base64."""
    return base64.b64decode(encoded.get_secret_value())


def base64_of(value: bytes) -> str:
    """Encode as base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(value).decode()


def base64url(value: bytes) -> str:
    """Encode as URL-safe base64 without padding, as in JWKs (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
