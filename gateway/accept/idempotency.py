"""Idempotency of requests: a request that repeats an `Idempotency-Key` gets the first answer, and changes nothing.

The key's row and the rows of the work are written in one transaction, so that neither exists without the other.
Source: IETF draft "The Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection

from gateway.errors import NO_RETRY, ApiError
from gateway.store.dialects import insert, rows_of, write_rows
from gateway.store.tables import idempotency
from telemetry.clock import Clock, SystemClock, unix_ms

_CLOCK = SystemClock()


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


class StoredKey(NamedTuple):
    """A key's row: a hash of its request, and the answer."""

    fingerprint: bytes
    answer: StoredAnswer

    def to(self, fingerprint: bytes) -> StoredAnswer:
        """Return the answer to a repeat of the request. Raises KeyReused for another request."""
        if self.fingerprint != fingerprint:
            raise KeyReused
        return self.answer


def once(
    connection: Connection,
    tenant: str,
    key: str | None,
    fingerprint: bytes,
    answer: Callable[[], StoredAnswer],
    clock: Clock = _CLOCK,
) -> StoredAnswer:
    """Return the answer stored under the tenant's key; without a stored answer, call `answer` and store its result.

    `fingerprint` is a hash of the method, the path and the body. If `key` is None, `answer` is called for every
    request. Raises KeyReused, and everything that `answer` raises; the caller's transaction is then rolled back.
    """
    if key is None:
        return answer()
    found = stored_answers(connection, [(tenant, key)]).get((tenant, key))
    if found is not None:
        return found.to(fingerprint)
    made = answer()
    row = key_row(tenant, key, fingerprint, unix_ms(clock), made)
    write_rows(connection, insert(connection, idempotency), [row])
    return made


def stored_answers(connection: Connection, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StoredKey]:
    """Return the stored answers by tenant and key."""
    if not names:
        return {}
    found = rows_of(connection, tuple(idempotency.c), names)
    return {(row.tenant, row.key): StoredKey(row.fingerprint, StoredAnswer(row.status, row.response)) for row in found}


def key_row(tenant: str, key: str, fingerprint: bytes, now_ms: int, answer: StoredAnswer) -> dict[str, Any]:
    """Return the row of a key with its answer."""
    row = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "created_at": now_ms}
    return {**row, "status": answer.status, "response": answer.body}
