"""The keyring: one small file with all keys that sign callbacks.

The file holds master secrets. Each tenant has a shared secret and an ed25519 key pair, derived from a master by
purpose, tenant and version (HKDF-SHA256, RFC 5869). So no database of keys is needed. After a rotation the old keys
sign beside the new keys for 24 hours by default, so that consumers have time to change. An operator can import another
sender's secrets for a tenant.

    keyring       the keys for signing and verifying, JWKs, and an operator's changes
    content       the file's content, the keys that sign at a time, and changes
    file          the file on the disk: read whole, replaced in one step, one writer at a time; the errors
"""

from __future__ import annotations

from workers.delivery.keyring.file import (
    KeyringError,
    KeyringExists,
    KeyringMissing,
    KeyringRefused,
    KeyringUnreadable,
)
from workers.delivery.keyring.keyring import OVERLAP_SECONDS, JwkSet, Keyring

__all__ = [
    "OVERLAP_SECONDS",
    "JwkSet",
    "Keyring",
    "KeyringError",
    "KeyringExists",
    "KeyringMissing",
    "KeyringRefused",
    "KeyringUnreadable",
]
