"""Authentication: a request's credential becomes a principal."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from gateway.access.principal import DEFAULT_SCOPES, Principal, Scope
from gateway.store.store import Store
from gateway.store.tables import api_keys
from telemetry.clock import Clock


class CredentialRefused(Exception):  # noqa: N818 - named after the refusal
    """The request has no valid credential. The error's text repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A created API key. The key itself is shown once and never stored."""

    id: str
    key: str


class Access:
    """Finds the principal of a request."""

    def __init__(self, store: Store, clock: Clock, pepper: bytes = b"") -> None:
        self._store = store
        self._clock = clock
        self._pepper = pepper

    async def principal(self, authorization: str | None, peer: bytes | None) -> Principal:
        """Return the principal of an `Authorization` header, or of a TLS client certificate (DER).

        Raises CredentialRefused.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.startswith("pk_"):
            raise CredentialRefused("send an API key: `Authorization: Bearer pk_…`")
        found = await self._store.read(lambda connection: self._find(connection, key.strip()))
        if found is None:
            raise CredentialRefused("the API key is unknown, expired or revoked")
        return found

    def create_key(self, connection: Connection, tenant: str, scopes: Iterable[Scope] = DEFAULT_SCOPES) -> NewKey:
        """Write a new key's row, and return the key."""
        identifier, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        key = f"pk_{identifier}_{secret}"
        row = {"id": identifier, "tenant": tenant, "digest": self._digest(key), "scopes": sorted(scopes)}
        connection.execute(api_keys.insert().values(**row, created_at=int(self._clock.time() * 1000)))
        return NewKey(identifier, key)

    def _find(self, connection: Connection, key: str) -> Principal | None:
        identifier = key.split("_")[1]
        row = connection.execute(select(api_keys).where(api_keys.c.id == identifier)).one_or_none()
        if row is None or row.revoked_at is not None or not hmac.compare_digest(row.digest, self._digest(key)):
            return None
        return Principal(row.tenant, f"key:{row.id}", "api_key", frozenset(map(Scope, row.scopes)))

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._pepper, key.encode(), hashlib.sha256)
