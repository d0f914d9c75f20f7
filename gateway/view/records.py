"""Records of `model_results` and `callback_attempts`, as the view reads them. Any bytes give a record or None."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pydantic_core import from_json

from gateway.store.dialects import storable
from schemas import topics as names
from schemas.codec import InvalidResult, read_result
from schemas.job import DEFAULT_TENANT, TENANT_PATTERN
from schemas.result import Result
from workers.stage.source import headers_of

_TENANT = re.compile(TENANT_PATTERN)
_WEBHOOK_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MOST_ATTEMPT_BYTES = 64 * 1024
_LARGEST = 2**63 - 1


KAFKA: Final = "kafka"
"""The `url` of a job that the gateway did not accept."""


class ResultRecord(NamedTuple):
    """A record of `model_results`, with the facts about its job that the view finds while it writes the record."""

    tenant: str
    result: Result
    value: bytes
    webhook_id: str | None
    at_ms: int
    """The record's timestamp, Unix milliseconds."""
    has_callback: bool
    """True if delivery sends the result to a callback of the job's own."""
    url: str = KAFKA
    """The API by which the job came in."""
    batch_id: str | None = None
    """The tenant's batch whose line the job is; None for a job that is no line."""
    line: int = 0
    """The line in the batch's input, from 0."""
    first: bool = True
    """True for a job's first result. A job that an operator put back gets a further result."""

    @property
    def job_id(self) -> str:
        """The job's id, as the database stores it."""
        return storable(self.result.job_id)[:256]


class AttemptRecord(NamedTuple):
    """A record of `callback_attempts`, as the row of `job_attempts`."""

    topic_partition: int
    topic_offset: int
    tenant: str
    job_id: str
    webhook_id: str
    at: int
    """Unix milliseconds."""
    details: dict[str, Any]
    """The record's members besides the ids and the time."""


def records_of(messages: Sequence[Any], results: str) -> tuple[list[ResultRecord], list[AttemptRecord]]:
    """Read records of the topic `results`, and of callback attempts. Records that the fleet did not write are left out.

    Delivery reports those.
    """
    answers = [result_of(each) for each in messages if each.topic() == results]
    attempts = [attempt_of(each) for each in messages if each.topic() != results]
    return [each for each in answers if each is not None], [each for each in attempts if each is not None]


def result_of(message: Any) -> ResultRecord | None:
    """Read a record of `model_results`; None if no worker wrote it."""
    headers, unreadable = headers_of(message)
    if unreadable is not None:
        return None
    said = dict(headers or ())
    tenant = (said.get(names.TENANT) or DEFAULT_TENANT.encode()).decode("latin-1")
    webhook_id = (said.get(names.WEBHOOK_ID) or b"").decode("latin-1")
    value = message.value() or b""
    try:
        result = read_result(value)
    except InvalidResult:
        return None
    if not _TENANT.fullmatch(tenant):
        return None
    known = webhook_id if _WEBHOOK_ID.fullmatch(webhook_id) else None
    at_ms, has_callback = max(0, message.timestamp()[1]), said.get(names.CALLBACK_URL) is not None
    return ResultRecord(tenant, result, value, known, at_ms, has_callback)


def attempt_of(message: Any) -> AttemptRecord | None:
    """Read a record of `callback_attempts`; None if delivery did not write it."""
    value = message.value() or b""
    if len(value) > _MOST_ATTEMPT_BYTES:
        return None
    try:
        said = from_json(value, allow_inf_nan=False)  # PostgreSQL's JSON stores no infinity and no NaN
        tenant, job_id, webhook_id, at_ms = (said.pop(name) for name in ("tenant", "job_id", "webhook_id", "at"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    texts = all(isinstance(each, str) for each in (tenant, job_id, webhook_id))
    if not texts or type(at_ms) is not int or not 0 <= at_ms <= _LARGEST or not _TENANT.fullmatch(tenant):
        return None
    return AttemptRecord(message.partition(), message.offset(), tenant, job_id, webhook_id, at_ms, said)
