"""Sessions of browsers at the console page. The store has a digest of each session's token, and no key.

A session has the rights of its API key at each request, and ends with the key. The session of a token (OIDC) keeps the
token's scopes, and ends with the token.
Source: OWASP Session Management Cheat Sheet.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import Connection, Row, select

from gateway.access.keys import find_key
from gateway.access.principal import CredentialRefused, Principal, Scope
from gateway.store.store import Store
from gateway.store.tables import console_sessions as table
from telemetry.clock import Clock, unix_ms

MOST = 20
"""The maximum number of sessions of one credential. A further session ends the oldest one."""
_TOKEN_BYTES = 32
_LONGEST_TOKEN = 64
_KEY = "key:"


class Sessions:
    """Begins, finds and ends sessions."""

    def __init__(self, store: Store, clock: Clock, seconds: int) -> None:
        self._store = store
        self._clock = clock
        self._seconds = seconds

    async def begin(self, principal: Principal) -> str:
        """Return the token of a new session. Raises StoreAway."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now_ms = unix_ms(self._clock)
        expires_ms = now_ms + self._seconds * 1000
        if principal.expires_at is not None:
            expires_ms = min(expires_ms, principal.expires_at * 1000)
        await self._store.write(lambda connection: _write(connection, principal, _digest(token), now_ms, expires_ms))
        return token

    async def find(self, token: str) -> Principal:
        """Return the principal of a session.

        Raises CredentialRefused, also for a session whose key ended, and StoreAway.
        """
        if len(token) > _LONGEST_TOKEN:
            raise CredentialRefused("the session is unknown")
        now_ms = unix_ms(self._clock)
        found = await self._store.read(lambda connection: _read(connection, _digest(token), now_ms))
        if found is None:
            raise CredentialRefused("the session has ended")
        return found

    async def end(self, token: str) -> None:
        """End a session; do nothing for an unknown one. Raises StoreAway."""
        await self._store.write(
            lambda connection: connection.execute(table.delete().where(table.c.digest == _digest(token))).rowcount
        )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _write(connection: Connection, principal: Principal, digest: str, now_ms: int, expires_ms: int) -> None:
    """Write a session, and remove expired sessions and the credential's oldest ones beyond MOST."""
    mine = (table.c.tenant == principal.tenant) & (table.c.credential == principal.credential)
    connection.execute(table.delete().where(table.c.expires_at <= now_ms))
    newest = select(table.c.digest).where(mine).order_by(table.c.created_at.desc()).limit(MOST - 1)
    kept = list(connection.execute(newest).scalars())
    connection.execute(table.delete().where(mine, table.c.digest.not_in(kept)))
    connection.execute(
        table.insert().values(
            digest=digest,
            tenant=principal.tenant,
            credential=principal.credential,
            scopes=sorted(principal.scopes),
            created_at=now_ms,
            expires_at=expires_ms,
        )
    )


def _read(connection: Connection, digest: str, now_ms: int) -> Principal | None:
    this = select(table).where(table.c.digest == digest, table.c.expires_at > now_ms)
    row = connection.execute(this).one_or_none()
    if row is None:
        return None
    if row.credential.startswith(_KEY):
        return _of_key(connection, row, now_ms)
    return Principal(row.tenant, row.credential, "jwt", frozenset(map(Scope, row.scopes)), row.expires_at // 1000)


def _of_key(connection: Connection, row: Row[Any], now_ms: int) -> Principal | None:
    """Return a session's principal from the present row of its key; None if the key is revoked, expired or gone."""
    found = find_key(connection, row.credential.removeprefix(_KEY))
    if found is None or not found[0].is_valid(now_ms):
        return None
    return Principal(found[0].tenant, row.credential, "api_key", found[0].scopes)
