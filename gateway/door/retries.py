"""Repeats of OpenAI's SDKs, which send no `Idempotency-Key` and repeat a request whose answer did not come in time.

A repeat joins the oldest equal request whose client has left and which no other repeat has joined. Two equal requests
that are both wanted stay two jobs, because the client of neither has left. The store has the requests that were left,
so a repeat may reach another gateway. Source: `openai-python`'s `_base_client.py`, "x-stainless-retry-count".
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection, select

from gateway.accept.idempotency import StoredAnswer
from gateway.door.endpoint import Call
from gateway.errors import RETRY_HEADER, StoreAway
from gateway.store.dialects import insert_new
from gateway.store.tables import left_requests
from telemetry.clock import unix_ms

KEY_HEADER = "idempotency-key"
RETURN_SECONDS = 15.0
"""The time within which an SDK repeats a request. Its pauses are 8 s at most."""
STALE_SECONDS = 60.0
"""The age at which a left request is joined no more, for a gateway that ended before it could remove the note.

The age is more than RETURN_SECONDS, because the clocks of two gateways differ.
"""
_COUNT = re.compile(r"[0-9]{1,4}")


def may_return(call: Call) -> bool:
    """True if the client is an SDK that repeats its request without an `Idempotency-Key`."""
    headers = call.request.headers
    return KEY_HEADER not in headers and _COUNT.fullmatch(headers.get(RETRY_HEADER, "")) is not None


async def rejoined(call: Call, fingerprint: bytes) -> StoredAnswer | None:
    """Return the stored answer of the request that this repeat joins; None for any other request."""
    if not may_return(call) or int(call.request.headers[RETRY_HEADER]) == 0:
        return None
    digest, since_ms = _digest(call, fingerprint), unix_ms(call.door.clock) - int(1000 * STALE_SECONDS)
    return await call.door.store.write(lambda connection: claim_left(connection, call.tenant, digest, since_ms))


def leave(
    call: Call, fingerprint: bytes, stored: StoredAnswer, object_id: str, unwanted: Callable[[Connection], None] | None
) -> None:
    """Note that the client of this request has left, without waiting for the store.

    If no repeat joins the request within RETURN_SECONDS, `unwanted` is called in a transaction.
    """
    store, tenant = call.door.store, call.tenant
    digest, now_ms = _digest(call, fingerprint), unix_ms(call.door.clock)
    store.submit(lambda connection: note_left(connection, tenant, object_id, digest, stored, now_ms))

    def end(connection: Connection) -> None:
        # A repeat may have joined the request and left it again: its own note has its own time to be joined.
        if forget_left(connection, tenant, object_id, now_ms) and unwanted is not None:
            unwanted(connection)

    def submit() -> None:
        with suppress(StoreAway):  # the job then goes on, and ends with its request's time
            store.submit(end)

    asyncio.get_running_loop().call_later(RETURN_SECONDS, submit)


def note_left(
    connection: Connection, tenant: str, object_id: str, digest: bytes, stored: StoredAnswer, now_ms: int
) -> None:
    """Write that a request was left. A request that is left again has a new row."""
    row = {"tenant": tenant, "object_id": object_id, "digest": digest, "created_at": now_ms}
    insert_new(connection, left_requests, [{**row, "status": stored.status, "response": stored.body}])


def claim_left(connection: Connection, tenant: str, digest: bytes, since_ms: int) -> StoredAnswer | None:
    """Remove the note of the oldest request with this digest that was left at `since_ms` (Unix ms) or later.

    Returns the request's stored answer; None without such a request.
    """
    left = left_requests.c
    equal = left.tenant == tenant, left.digest == digest, left.created_at >= since_ms
    for row in connection.execute(select(left_requests).where(*equal).order_by(left.object_id)).all():
        # another gateway's repeat may have been faster
        if forget_left(connection, tenant, row.object_id, row.created_at):
            return StoredAnswer(row.status, row.response)
    return None


def forget_left(connection: Connection, tenant: str, object_id: str, left_ms: int) -> bool:
    """Remove the note that a request was left at this time (Unix ms); False if a repeat has joined the request."""
    left = left_requests.c
    this = left.tenant == tenant, left.object_id == object_id, left.created_at == left_ms
    return connection.execute(left_requests.delete().where(*this)).rowcount == 1


def _digest(call: Call, fingerprint: bytes) -> bytes:
    """Return the hash of the credential and the request."""
    return hashlib.sha256(b"%b\n%b" % (call.principal.credential.encode(), fingerprint)).digest()
