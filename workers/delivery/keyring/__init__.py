"""The keyring: one small file with all keys that sign callbacks.

The file holds master secrets. Each tenant has a shared secret and an ed25519 key pair, derived from a master by
purpose, tenant and version (HKDF-SHA256, RFC 5869). So no database of keys is needed. After a rotation the old keys
sign beside the new keys for 24 hours by default, so that consumers have time to change. An operator can import another
sender's secrets for a tenant. Earlier versions made format 1, with one master and one ed25519 key pair for the whole
fleet. `Keyring.migrate` turns a file of format 1 into format 2.

    keyring       the keys for signing and verifying, and an operator's changes
    data          the file's content, and its changes
    keys          the kinds of keys in the file, each with the time until which it signs
    versions      the signing versions of a tenant's keys, and their masters
    material      derivation, random bytes, notations
    jwk           a public key as a JWK
    tenant_cache  cached signers and JWK sets
    file          the file on the disk: read whole, replaced in one step, one writer at a time

Every error is a KeyringError with a text that names the path or the tenant, and the fix:

    KeyringError
    ├── KeyringMissing     the file is missing
    ├── KeyringExists      `create` does not overwrite keys
    ├── KeyringUnreadable  the file cannot be read or written, is open to others, or is no keyring
    ├── KeyringFormatOld   the change needs format 2
    └── KeyringRefused     the change makes no sense for these keys
"""

from __future__ import annotations

from workers.delivery.keyring.errors import (
    KeyringError,
    KeyringExists,
    KeyringFormatOld,
    KeyringMissing,
    KeyringRefused,
    KeyringUnreadable,
)
from workers.delivery.keyring.keyring import MIGRATION_OVERLAP_SECONDS, OVERLAP_SECONDS, JwkSet, Keyring

__all__ = [
    "MIGRATION_OVERLAP_SECONDS",
    "OVERLAP_SECONDS",
    "JwkSet",
    "Keyring",
    "KeyringError",
    "KeyringExists",
    "KeyringFormatOld",
    "KeyringMissing",
    "KeyringRefused",
    "KeyringUnreadable",
]
