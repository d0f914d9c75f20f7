"""API keys: their text, and their rows in the store, which has digests and never keys.

A key is `pk_<id>_<secret><checksum>`:

    id         16 hexadecimal digits, public: it names the key in lists, logs and the audit
    secret     256 random bits as 43 digits of base62
    checksum   CRC32 of all before it as 6 digits of base62

By the checksum, secret scanners and clients find a mistyped or truncated key without asking the gateway.
Source: GitHub's blog, "Behind GitHub's new authentication token formats". GitHub's checksum covers the secret alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, tuple_

from gateway.access.principal import DEFAULT_SCOPES, Scope
from gateway.store.tables import api_keys
from telemetry.clock import Clock, unix_ms

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


@dataclass(frozen=True, slots=True)
class NewKey:
    """A created API key. The key itself is shown once and never stored."""

    id: str
    key: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's row, without its digest. Times are Unix milliseconds."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    label: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None

    def state(self, now_ms: float) -> str:
        """Return `valid`, `revoked` or `expired`."""
        return "revoked" if self.revoked_at is not None else "valid" if self.is_valid(now_ms) else "expired"

    def is_valid(self, now_ms: float) -> bool:
        """True unless the key is revoked or expired."""
        return self.revoked_at is None and (self.expires_at is None or now_ms < self.expires_at)


class KeyDigests:
    """Makes the digests of keys: HMAC-SHA256 with the pepper as its key.

    An attacker who reads or writes the store, but lacks the pepper, gets no usable key.
    """

    def __init__(self, pepper: bytes) -> None:
        self._keyed = hmac.new(pepper, digestmod=hashlib.sha256)

    def of(self, key: str) -> bytes:
        """Return the digest of a key's text.

        `hmac.digest` would give the interpreter's lock away, and a busy event loop would wait to have it back.
        """
        code = self._keyed.copy()
        code.update(key.encode())
        return code.digest()

    def is_of(self, key: str, digest: bytes) -> bool:
        """True if the digest is this key's. The comparison takes constant time."""
        return hmac.compare_digest(self.of(key), digest)


def create_key(
    connection: Connection,
    digests: KeyDigests,
    clock: Clock,
    tenant: str,
    scopes: Iterable[Scope] = DEFAULT_SCOPES,
    label: str | None = None,
    expires_at: int | None = None,
) -> NewKey:
    """Write a new key's row, and return the key. `expires_at` is in Unix milliseconds."""
    identifier, key = new_key()
    connection.execute(
        api_keys.insert().values(
            id=identifier,
            tenant=tenant,
            digest=digests.of(key),
            scopes=sorted(scopes),
            label=label,
            created_at=unix_ms(clock),
            expires_at=expires_at,
        )
    )
    return NewKey(identifier, key)


def revoke_key(connection: Connection, clock: Clock, identifier: str) -> ApiKey | None:
    """Revoke a key for good, and return it; None if there is no such key.

    A second call does not change the revocation's time.
    """
    this = api_keys.c.id == identifier
    connection.execute(api_keys.update().where(this, api_keys.c.revoked_at.is_(None)).values(revoked_at=unix_ms(clock)))
    row = connection.execute(select(api_keys).where(this)).one_or_none()
    return _of(row) if row is not None else None


def listed_keys(
    connection: Connection, tenant: str | None = None, limit: int = 1000, after: str | None = None
) -> list[ApiKey] | None:
    """Return keys, the oldest first: one tenant's or all. If `after` is a key's id, return only the keys after it.

    Returns None if there is no key `after`.
    """
    query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id).limit(limit)
    if tenant is not None:
        query = query.where(api_keys.c.tenant == tenant)
    if after is not None:
        place = select(api_keys.c.created_at, api_keys.c.id).where(api_keys.c.id == after)
        last = connection.execute(place).one_or_none()
        if last is None:
            return None
        query = query.where(tuple_(api_keys.c.created_at, api_keys.c.id) > tuple_(*last))
    return [_of(row) for row in connection.execute(query)]


def find_key(connection: Connection, identifier: str) -> tuple[ApiKey, bytes] | None:
    """Return the key with this id and its digest; None if there is none."""
    row = connection.execute(select(api_keys).where(api_keys.c.id == identifier)).one_or_none()
    return (_of(row), bytes(row.digest)) if row is not None else None


def note_use(connection: Connection, clock: Clock, identifier: str) -> None:
    """Write the time of the key's last use."""
    connection.execute(api_keys.update().where(api_keys.c.id == identifier).values(last_used_at=unix_ms(clock)))


def _of(row: Row[Any]) -> ApiKey:
    return ApiKey(
        row.id,
        row.tenant,
        frozenset(map(Scope, row.scopes)),
        row.label,
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.last_used_at,
    )
