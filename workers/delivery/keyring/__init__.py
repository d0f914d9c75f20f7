"""The keyring: one small file that holds every key with which callbacks are signed.

It holds master secrets, from which each tenant's keys are derived (HKDF-SHA256, RFC 5869) by purpose, tenant and
version: a shared secret and an ed25519 key pair. So no database of keys is needed. A rotation keeps the old keys
signing beside the new ones for 24 hours, unless it is told otherwise, so that a consumer may change over meanwhile.
Secrets that another sender made can be imported for a tenant. Format 1, which earlier versions made, has one master,
and one ed25519 key pair for the whole fleet; `Keyring.migrate` turns it into format 2.

    keyring       the keys as those who sign and verify see them, and the changes that an operator makes
    data          the file as data, and what a change makes of it
    keys          the parts of the file, each with the time until which it signs
    versions      which versions of a tenant's keys sign, under which masters
    material      derivation, random bytes, notations
    jwk           a public key as a JWK
    remembered    signers and JWK sets that were made
    file          the file on the disk: read whole, replaced in one step, one writer at a time

Errors, all KeyringError, each naming the path or the tenant, and the fix:

    KeyringError
    ├── KeyringMissing     there is no such file
    ├── KeyringExists      `create` will not overwrite keys
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
