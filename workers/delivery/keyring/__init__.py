"""The keyring: one small file that holds every key with which callbacks are signed.

It holds a master secret, from which each tenant's secret is derived (HKDF-SHA256, RFC 5869) by tenant and version, so
that no database of secrets is needed; and one ed25519 key pair for the whole fleet. A rotation keeps the old key
signing beside the new one for 24 hours, so that a consumer may change over at any moment of that day.

Errors, all KeyringError, each naming the path and what to do:

    KeyringError
    ├── KeyringMissing     there is no such file
    ├── KeyringExists      `create` will not overwrite keys
    └── KeyringUnreadable  the file cannot be read or written, is open to others, or is no keyring
"""

from workers.delivery.keyring.errors import KeyringError, KeyringExists, KeyringMissing, KeyringUnreadable
from workers.delivery.keyring.keyring import OVERLAP_SECONDS, Keyring

__all__ = ["OVERLAP_SECONDS", "Keyring", "KeyringError", "KeyringExists", "KeyringMissing", "KeyringUnreadable"]
