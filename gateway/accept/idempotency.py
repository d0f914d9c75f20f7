"""Idempotency of requests: a request that repeats an `Idempotency-Key` gets the first answer, and changes nothing.

The key's row and the rows of the work are written in one transaction, so that neither exists without the other.
Source: IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, select

from gateway.errors import NO_RETRY, ApiError
from gateway.store.dialects import insert, insert_new, write_rows
from gateway.store.tables import idempotency
from telemetry.clock import Clock, SystemClock, unix_ms

_CLOCK = SystemClock()
_STORED = select(idempotency.c.fingerprint, idempotency.c.status, idempotency.c.response).where(
    idempotency.c.tenant == bindparam("of"), idempotency.c.key == bindparam("named")
)
"""This query is built once, because SQLAlchemy takes longer to build it than SQLite takes to answer it."""


class KeyReused(ApiError):  # noqa: N818 - it names what happened
    """A request has the `Idempotency-Key` of an earlier request, but another body."""

    def __init__(self) -> None:
        message = "The Idempotency-Key was used for another request; send a new key with a new request."
        super().__init__(409, "idempotency_key_reused", message, headers=NO_RETRY)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A stored answer: its HTTP status and its body."""

    status: int
    body: bytes


def once(
    connection: Connection,
    tenant: str,
    key: str | None,
    fingerprint: bytes,
    answer: Callable[[], StoredAnswer],
    clock: Clock = _CLOCK,
    known: StoredAnswer | None = None,
) -> StoredAnswer:
    """Return the answer stored under the tenant's key; without a stored answer, call `answer` and store its result.

    `fingerprint` is a hash of the method, the path and the body. If `key` is None, `answer` is called for every
    request.
    `known` is the value that `answer` will return, if the caller has it already. If `known` is given, the key's row is
    written first. A conflict of this write shows that the request is a repeat, so a new key needs no query.
    Raises KeyReused, and everything that `answer` raises; the caller's transaction is then rolled back.
    """
    if key is None:
        return answer()
    now_ms = unix_ms(clock)
    row = partial(key_row, tenant, key, fingerprint, now_ms)
    if known is not None and insert_new(connection, idempotency, [row(known)]):
        return answer()
    found = connection.execute(_STORED, {"of": tenant, "named": key}).one_or_none()
    if found is not None:
        return _stored(found.fingerprint, StoredAnswer(found.status, found.response), fingerprint)
    made = answer()
    write_rows(connection, insert(connection, idempotency), [row(made)])
    return made


def key_row(tenant: str, key: str, fingerprint: bytes, now_ms: int, answer: StoredAnswer) -> dict[str, Any]:
    """Return the row of a key with its answer."""
    row = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "created_at": now_ms}
    return {**row, "status": answer.status, "response": answer.body}


def _stored(fingerprint: bytes, answer: StoredAnswer, asked: bytes) -> StoredAnswer:
    if fingerprint != asked:
        raise KeyReused
    return answer
