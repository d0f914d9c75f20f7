"""The records that delivery writes: a waiting callback, a dead letter, an attempt, an endpoint's state.

A waiting record keeps the result and all headers of its source record, except for the headers about waiting.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from pydantic_core import to_json

from schemas import topics as names
from schemas.endpoint import EndpointKey, EndpointRecord, key_bytes, write_endpoint
from schemas.job import DEFAULT_TENANT, LONGEST_TTL_SECONDS, TENANT_PATTERN
from schemas.topics import Topics
from telemetry.logs import origin_of
from telemetry.traces import is_traceparent
from workers.delivery.endpoint_events import EndpointEvent, UnusableRecord, read_endpoint_event
from workers.delivery.post import Delivered, PostOutcome
from workers.delivery.retries import left_ms
from workers.stage import dead_letters as letters
from workers.stage.later import STAMPS, put_off
from workers.stage.record import Header, Output, Record, size_of

_HOPPED = frozenset({names.LEFT, names.WRITTEN, names.RESULT_AT})
_RETRIED = _HOPPED | {names.ATTEMPT, names.NOT_BEFORE, names.WAITED, names.DEFERRED_REASON}
_DEFERRED = _HOPPED | {names.DEFERRED, names.DEFERRED_REASON, names.WAITED}
_WAITING = frozenset(names.WAITING_HEADERS)
_NUMBERS = frozenset((names.ATTEMPT, names.DEFERRED, names.WAITED, names.NOT_BEFORE, names.LEFT, names.RESULT_AT))

_LONGEST_WAIT_MS = round(1000 * LONGEST_TTL_SECONDS)
"""The longest wait of a job in the tiers, in milliseconds: the job must end within this time after it was sent."""
_TENANT = re.compile(TENANT_PATTERN)

_origin = lru_cache(maxsize=4096)(origin_of)


class DeferralReason(StrEnum):
    """The reason for deferring a callback without an attempt, in the header `deferred-reason`."""

    DESTINATION_BUSY = "destination_busy"
    """The destination has used up its share of this process's window."""
    RATE_LIMITED = "rate_limited"
    """The rate limit of the endpoint or its origin allows no attempt soon."""
    ORIGIN_LEFT_ALONE = "origin_left_alone"
    """The origin's breaker is open: the origin failed too often, or sent a Retry-After."""
    RESOURCES_EXHAUSTED = "resources_exhausted"
    """This process lacked descriptors, ports or memory for a connection."""


class PendingDelivery(NamedTuple):
    """A callback to make, as the headers of its record describe it."""

    url: str
    origin: str
    """Scheme, host and port of the URL. Logs and `callback_attempts` show only this part."""
    tenant: str
    job_id: str
    webhook_id: str
    traceparent: str | None
    attempts: int
    """Number of POSTs so far."""
    deferred: int
    waited_ms: int
    """Sum of all planned waits so far, in milliseconds.

    The sum uses no clock, so a wrong clock does not change the sum.
    """
    not_before_ms: int | None
    left_ms: int | None
    """Milliseconds of the wait that were left when the record was written."""
    result_at_ms: int = 0
    """Time at which the result was written or put back, in Unix milliseconds."""
    event: EndpointEvent | None = None
    """The endpoint of a ready event; None for a result."""

    @property
    def destination(self) -> tuple[str, str]:
        """Tenant and origin. Callbacks to one destination share its limit on simultaneous attempts."""
        return self.tenant, self.origin


def read_pending(record: Record) -> PendingDelivery | None:
    """Return the callback that a record asks for; None without a callback URL. Raises UnusableRecord."""
    if record.unreadable is not None:
        raise UnusableRecord(f"its headers {record.unreadable}")
    headers = dict(record.headers or ())
    url = headers.get(names.CALLBACK_URL)
    if url is None:
        return None
    if len(record.value) + len(record.key or b"") + size_of(record.headers or ()) > letters.MAX_LETTER_BYTES:
        raise UnusableRecord("the record is larger than a result may be, so no tier would take the record")
    text = _text(url, names.CALLBACK_URL)
    trace = (headers.get(names.TRACEPARENT) or b"").decode("latin-1")
    numbers = {
        name: _number(headers[name] or b"", name) for name in _NUMBERS & headers.keys() if headers[name] is not None
    }
    return PendingDelivery(
        url=text,
        origin=_origin(text),
        tenant=_tenant(headers.get(names.TENANT, DEFAULT_TENANT.encode())),
        job_id=_token(headers.get(names.JOB_ID, record.key), names.JOB_ID),
        webhook_id=_token(headers.get(names.WEBHOOK_ID), names.WEBHOOK_ID),
        traceparent=trace if is_traceparent(trace) else None,
        attempts=numbers.get(names.ATTEMPT, 0),
        deferred=numbers.get(names.DEFERRED, 0),
        waited_ms=numbers.get(names.WAITED, 0),
        not_before_ms=numbers.get(names.NOT_BEFORE),
        left_ms=numbers.get(names.LEFT),
        result_at_ms=numbers.get(names.RESULT_AT) or record.timestamp_ms,
        event=read_endpoint_event(record.headers or ()) if names.WEBHOOK_ENDPOINT in headers else None,
    )


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UnusableRecord(f"the header {name} is not UTF-8") from None


def _token(value: bytes | None, name: str) -> str:
    """Return a value fit for HTTP headers and logs: printable ASCII without spaces. Raises UnusableRecord."""
    if not value:
        raise UnusableRecord(f"the header {name} is missing")
    text = value.decode("latin-1")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise UnusableRecord(f"the header {name} is not printable ASCII without spaces")
    return text


@lru_cache(maxsize=4096)
def _tenant(value: bytes | None) -> str:
    """Return a tenant's name, which is part of the event and of the public keys' path. Raises UnusableRecord."""
    text = _token(value, names.TENANT)
    if not _TENANT.fullmatch(text):
        raise UnusableRecord(
            f"the header {names.TENANT} is not 1 to 63 letters, digits, `_` or `-`, a letter or digit first"
        )
    return text


def _number(value: bytes, name: str) -> int:
    if not value.isdigit() or len(value) > 15:
        raise UnusableRecord(f"the header {name} is not a number")
    return int(value)


def waiting(
    record: Record,
    tier_topic: str,
    pending: PendingDelivery,
    now_ms: int,
    wait_ms: int,
    steady_ms: int,
    deferred_ms: int = 0,
) -> Output:
    """Return the record with the headers of its wait for the next attempt.

    `steady_ms` is the present time by the jump-free clock, by which the tier's delay is measured. With `deferred_ms`,
    the record waits for longer, because its origin is left alone, and is also deferred.
    """
    removed, deferral = _RETRIED, list[Header]()
    if deferred_ms:
        removed = _RETRIED | _DEFERRED
        deferral = _deferral(pending, DeferralReason.ORIGIN_LEFT_ALONE)
    headers = [
        *_without(record, removed),
        *deferral,
        (names.ATTEMPT, str(pending.attempts + 1).encode()),
        (names.NOT_BEFORE, str(now_ms + wait_ms).encode()),
        (names.LEFT, str(wait_ms).encode()),
        (names.WAITED, str(pending.waited_ms + wait_ms + deferred_ms).encode()),
        *_written(pending, steady_ms),
    ]
    return Output(tier_topic, record.value, record.key, headers)


def hopping(record: Record, tier_topic: str, pending: PendingDelivery, left_ms: int, steady_ms: int) -> Output:
    """Return the record with the headers of a further wait in another tier."""
    headers = [
        *_without(record, _HOPPED),
        (names.LEFT, str(left_ms).encode()),
        *_written(pending, steady_ms),
    ]
    return Output(tier_topic, record.value, record.key, headers, may_linger=True)


def deferred(
    record: Record, tier_topic: str, pending: PendingDelivery, reason: DeferralReason, wait_ms: int, steady_ms: int
) -> Output:
    """Return the record with the headers of a deferral, which is no attempt."""
    headers = [
        *_without(record, _DEFERRED),
        (names.LEFT, b"0"),  # 0 makes the record due when it leaves its tier, even if the clock is wrong by then
        *_deferral(pending, reason),
        (names.WAITED, str(pending.waited_ms + wait_ms).encode()),
        *_written(pending, steady_ms),
    ]
    return Output(tier_topic, record.value, record.key, headers, may_linger=True)


def moved_on(record: Record, tier_ms: int, now_ms: int, topics: Topics, lanes: Collection[str]) -> Output:
    """Return a job that leaves a tier of `tier_ms`: for the next tier, or for its lane once its time has come.

    A job whose lane is not among the known `lanes` goes to the shared lane, whose workers forward it. Headers that this
    fleet did not write count as 0. A job leaves its tiers after the longest wait at the latest, whatever its headers
    state.
    """
    not_before_ms = _time(record, names.NOT_BEFORE)
    left_when_written_ms = min(_time(record, names.LEFT), _LONGEST_WAIT_MS)
    left = left_ms(not_before_ms, now_ms, left_when_written_ms, tier_ms)
    if left > 0:
        return put_off(record, not_before_ms, left, now_ms, topics)
    stated = record.header(names.LANE)
    lane = stated if stated is not None and stated in lanes else topics.requests()
    return Output(lane, record.value, record.key, _without(record, STAMPS | {names.LANE}), record.partition)


def _time(record: Record, name: str) -> int:
    text = record.header(name) or ""
    return int(text) if text.isdecimal() and len(text) <= 15 else 0


def dead_letter(record: Record, topics: Topics, reason: str, detail: str, attempts: int) -> Output:
    """Return the record's dead letter. A redrive starts the attempts again, with the same `webhook-id`."""
    carried = _without(record, _WAITING)
    return letters.dead_letter(topics.dead_letters, record, reason, detail, attempts, carried)


def attempt(pending: PendingDelivery, topics: Topics, outcome: PostOutcome, at_ms: int, sent_bytes: int) -> Output:
    """Return the record of one POST, keyed by the job.

    The record leaves out the event and the URL's path and query. The field `answer` holds an excerpt of the answer's
    body, if the setting `answer_excerpt_bytes` is above 0.
    """
    said: dict[str, str | int | float | None] = {
        "webhook_id": pending.webhook_id,
        "job_id": pending.job_id,
        "tenant": pending.tenant,
        "origin": pending.origin,
        "attempt": pending.attempts + 1,
        "at": at_ms,
        "status": outcome.status,
        "duration_ms": round(outcome.duration_seconds * 1000, 3),
        "error": None if isinstance(outcome, Delivered) else str(outcome.reason),
        "bytes": sent_bytes,
    }
    if outcome.answer_excerpt:
        said["answer"] = outcome.answer_excerpt
    headers = [(names.TENANT, pending.tenant.encode()), (names.WEBHOOK_ID, pending.webhook_id.encode())]
    return Output(topics.attempts, to_json(said), pending.job_id.encode(), headers)


def endpoint_state(key: EndpointKey, state: EndpointRecord | None, topics: Topics) -> Output:
    """Return the record of an endpoint's new state, or its tombstone, for the only partition of a compacted topic."""
    return Output(topics.endpoints, None if state is None else write_endpoint(state), key_bytes(key), partition=0)


def _deferral(pending: PendingDelivery, reason: DeferralReason) -> list[Header]:
    return [(names.DEFERRED, str(pending.deferred + 1).encode()), (names.DEFERRED_REASON, reason.encode())]


def _written(pending: PendingDelivery, steady_ms: int) -> list[Header]:
    return [(names.WRITTEN, str(steady_ms).encode()), (names.RESULT_AT, str(pending.result_at_ms).encode())]


def _without(record: Record, removed: frozenset[str]) -> list[Header]:
    return [(name, value) for name, value in record.headers or () if name not in removed]
