"""Idempotency of requests: a repeat with the same `Idempotency-Key` gets the first answer, and does nothing.

The key's row and the rows of the work are written in one transaction, so that one exists only with the other.
Source: IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from gateway.store.dialects import insert
from gateway.store.tables import idempotency
from telemetry.clock import Clock, SystemClock

_CLOCK = SystemClock()
_UNANSWERED = 0


class KeyReused(Exception):  # noqa: N818 - it names what happened
    """A request has the `Idempotency-Key` of an earlier request, but another body. The door answers 409."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it is stored: HTTP status and body."""

    status: int
    body: bytes


def once(
    connection: Connection,
    tenant: str,
    key: str | None,
    fingerprint: bytes,
    answer: Callable[[], StoredAnswer],
    clock: Clock = _CLOCK,
) -> StoredAnswer:
    """Return the answer stored under the tenant's key; if there is none, do the work by `answer` and store its answer.

    `fingerprint` is a hash of the method, the path and the body. `key` None: every request does its work.
    Raises KeyReused, and everything that `answer` raises; then the change takes back all of its rows.

    Of two gateways on PostgreSQL that insert one key at once, the second waits for the first one's commit.
    """
    if key is None:
        return answer()
    row = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "created_at": int(clock.time() * 1000)}
    claimed = connection.execute(
        insert(connection, idempotency).on_conflict_do_nothing(),
        {**row, "status": _UNANSWERED, "response": b""},
    )
    this = (idempotency.c.tenant == tenant) & (idempotency.c.key == key)
    if claimed.rowcount == 0:
        return _stored(connection.execute(select(idempotency).where(this)).one(), fingerprint)
    made = answer()
    connection.execute(idempotency.update().where(this).values(status=made.status, response=made.body))
    return made


def _stored(row: object, fingerprint: bytes) -> StoredAnswer:
    found, status, response = (getattr(row, name) for name in ("fingerprint", "status", "response"))
    if found != fingerprint:
        raise KeyReused("The Idempotency-Key was used for another request; send a new key with a new request.")
    return StoredAnswer(status, response)
