"""Convert bytes to models and models to bytes. Any input gives either a model or one of these errors.

    CodecError
    ├── InvalidJob      a record that is no job; carries its problems and an address for the rejection
    │   └── UntrustedJob    a record whose tenant is not signed by the fleet
    └── InvalidResult   a record of `model_results` that no worker wrote

If a field is absent from the body, its value is read from the header. If header and body disagree, the job is rejected.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from schemas import openai, topics
from schemas.job import (
    DEFAULT_TENANT,
    LONGEST_TTL_SECONDS,
    MAX_JOB_BYTES,
    TENANT_PATTERN,
    CustomId,
    Identifier,
    Job,
    Url,
)
from schemas.outcome import Outcome
from schemas.problems import Problem, UnusableLine, problems_of
from schemas.result import Result, ResultError
from schemas.screening import ScreeningFinding, read_findings
from schemas.unknown import UnknownFields, taken_from, unknown_fields

__all__ = [
    "CodecError",
    "Headers",
    "InvalidJob",
    "InvalidResult",
    "Origin",
    "Problem",
    "ReceivedJob",
    "UntrustedJob",
    "address_in",
    "read_address",
    "read_batch_line",
    "read_job",
    "read_result",
    "rejected_result",
    "write_job",
    "write_plain_result",
    "write_result",
    "wrong_start",
]

Headers = Sequence[tuple[str, bytes | None]]
"""Kafka record headers. If a name occurs more than once, its last value is used."""

_READABLE_BYTES = 4 * MAX_JOB_BYTES
"""The size up to which an oversized record is parsed, to find its callback for the rejection."""

_BODY = b'"body"'
"""The name of the member that each line of a Batch has. Few jobs have these bytes."""
_EARLIEST_SECONDS = 1_000_000_000
"""September 2001 in Unix seconds, and January 1970 in Unix milliseconds."""


class Origin(NamedTuple):
    """A record's place. `topic_id` is the topic's UUID, because a deleted topic's name may be used again."""

    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic_id}:{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Return the origin in a text of `str(origin)`, which the caller has matched against `_PLACE`."""
        topic_id, partition, offset = text.rsplit(":", 2)
        return cls(topic_id, int(partition), int(offset))

    @property
    def digest(self) -> str:
        """A text of 32 hexadecimal digits that is derived from this place alone."""
        return hashlib.sha256(str(self).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def webhook_id(self, value: bytes | None) -> str:
        """Return the `webhook-id` of a job that was first written at this place with this value.

        Headers can be forged, and a place can be guessed. The hash covers the value too, so only a copy of the same job
        (same prompt, same callback URL) has the same `webhook-id`.
        """
        place = str(self).encode("utf-8", "surrogatepass")
        return f"msg_{hashlib.sha256(b'%b:%b' % (place, hashlib.sha256(value or b'').digest())).hexdigest()[:32]}"


@dataclass(slots=True)
class ReceivedJob:
    """A valid job with its identity and the values of its headers.

    It is never changed. It is not frozen, since each job makes one, and a frozen dataclass takes three times as long.
    """

    job: Job
    job_id: str
    tenant: str
    webhook_id: str
    """The event's id, derived from `origin` and the value, so that consumers do not mistake another job's event for a
    repeat."""
    place: Origin
    """The record's current place, which no other record has."""
    origin: Origin
    """The job's first place: `place`, unless a worker moved the job or an operator put it back."""
    deadline_ms: int
    """Unix milliseconds after which the job expires."""
    priority: int
    """0 to 9, higher first."""
    traceparent: str | None
    received_ms: int
    """The record's timestamp, Unix milliseconds."""
    idempotency_key: str | None = None
    """The producer's own name for its submission. Workers do not use the name: two records with one key are two
    jobs."""
    unknown: UnknownFields | None = None
    """Ignored fields, which are not part of the job's schema."""
    screening: tuple[ScreeningFinding, ...] = ()
    """The findings of the gateway's input filter, and also of the worker's filter after the worker has screened the
    job.

    In `job`, markers stand in place of the redacted matches.
    """
    alias: str | None = None
    """The alias that the job named; None without a rollout. The rollout may have put a model's name into `job`."""
    wants_deltas: bool = False
    """True if a client of the gateway waits for the answer piece by piece."""

    @property
    def is_plain(self) -> bool:
        """True if the job is a prompt to answer now, with no field that goes with another one, and nothing unknown."""
        job = self.job
        return (
            self.unknown is None
            and self.alias is None
            and not self.screening
            and not self.wants_deltas
            and job.is_plain
            and job.not_before is None
        )


class CodecError(Exception):
    """The bytes are not a record of their topic."""


class InvalidJob(CodecError):  # noqa: N818 - named after the record, as in the design
    """The record is not a valid job. The error's text names fields and reasons, and repeats no input.

    `job_id`, `tenant`, `webhook_id` and `origin` are always usable, and mean the same as in a `ReceivedJob`.
    `custom_id` and `callback_url` are None if they are absent or cannot be read safely.
    """

    code = "invalid_job"
    """The code of the result's error."""
    letter_reason = "rejected"
    """The reason of the dead letter."""
    screening: tuple[ScreeningFinding, ...] = ()
    """The input filter's findings, if the filter rejects the job."""

    def __init__(
        self,
        problems: tuple[Problem, ...],
        *,
        job_id: str,
        tenant: str,
        webhook_id: str,
        origin: Origin,
        custom_id: str | None = None,
        callback_url: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems
        self.job_id = job_id
        self.tenant = tenant
        self.webhook_id = webhook_id
        self.origin = origin
        self.custom_id = custom_id
        self.callback_url = callback_url
        self.traceparent = traceparent


class UntrustedJob(InvalidJob):
    """The record's tenant is not signed. The error repeats nothing that the record states.

    The rejection belongs to the default tenant, has a job id that no other job has, and calls no callback. If the
    rejection had the stated values, a stranger could end other tenants' jobs, or have callbacks signed in those
    tenants' names.
    """

    code = "untrusted_job"
    letter_reason = "untrusted"

    def __init__(self, value: bytes | None, place: Origin) -> None:
        problem = Problem(
            f"headers.{topics.TENANT_SIGNATURE}", "does not sign this tenant, job id and value with the fleet's secret"
        )
        super().__init__(
            (problem,),
            job_id=f"job_{place.digest}",
            tenant=DEFAULT_TENANT,
            webhook_id=place.webhook_id(value),
            origin=place,
        )


class InvalidResult(CodecError):  # noqa: N818
    """The record of `model_results` was not written by a worker."""


def read_job(value: bytes | None, headers: Headers | None, origin: Origin, timestamp_ms: int) -> ReceivedJob:
    """Return the job in a record, whose value is a job's JSON or a line of an OpenAI Batch. Raises only InvalidJob.

    `timestamp_ms` is the record's timestamp in Unix milliseconds; `ttl_seconds` counts from that time, or from the
    job's `not_before`.
    """
    said, problems = _read_headers(headers) if headers else ({}, ())
    try:
        job, unknown = _read_body(value)
    except _Refused as refused:
        raise _invalid(
            refused.problems + problems, refused.document, said, _origin(said, value, origin), value
        ) from None
    if said:
        problems += _conflicts(job, said) + _wrong_deadline(said, timestamp_ms)
    if job.not_before is not None:
        problems += wrong_start(job, timestamp_ms, said.get(topics.DEADLINE))
    if problems:
        shown = job.model_dump(include={"job_id", "custom_id", "callback_url"})
        raise _invalid(problems, shown, said, _origin(said, value, origin), value)
    return _received(job, unknown, said, value, origin, timestamp_ms)


def read_batch_line(line: dict[str, Any]) -> tuple[Job, UnknownFields | None]:
    """Return the job in a line of an OpenAI Batch (`openai.is_batch_line`), and the line's ignored members.

    Raises UnusableLine, which names the line's own members.
    """
    try:
        job = Job.model_validate(openai.job_fields(line), strict=True)
    except ValidationError as error:
        raise UnusableLine(*(openai.problem_in_line(found, line) for found in problems_of(error))) from None
    return job, unknown_fields(f"body.{name}" for name in openai.passed_over(line))


def wrong_start(job: Job, sent_ms: int, deadline: str | None = None) -> tuple[Problem, ...]:
    """Return a problem if `not_before` is too late: past the deadline, or so late that the job would live too long.

    `sent_ms` is the time at which the job is sent, and `deadline` the header of that name. A job in a tier is bounded
    like a job in a lane: Kafka keeps both for seven days, and a cancellation for a day longer.
    """
    begins_ms = job.begins_ms(sent_ms)
    lives_seconds = (begins_ms - sent_ms) / 1000 + job.ttl_seconds
    if begins_ms == sent_ms:
        return ()
    if deadline is not None:
        late = begins_ms >= int(deadline)
        return (Problem("not_before", "is past the job's deadline; choose an earlier time"),) if late else ()
    if lives_seconds <= LONGEST_TTL_SECONDS:
        return ()
    reason = (
        f"with `ttl_seconds` the job would end {lives_seconds / 86_400:.1f} days after it is sent; at most "
        f"{LONGEST_TTL_SECONDS / 86_400:g} are possible, since Kafka keeps jobs for seven days (`retention.ms`): "
        "choose an earlier time, or lower `ttl_seconds`"
    )
    return (Problem("not_before", reason),)


def read_address(value: bytes | None, headers: Headers | None, origin: Origin) -> InvalidJob:
    """Return the error for a record that is to be rejected, with the tenant and callback read from it.

    The returned error has an empty list of problems. Never raises, whatever the bytes.
    """
    said, _ = _read_headers(headers) if headers else ({}, ())
    return _invalid((), _document(value or b""), said, _origin(said, value, origin), value)


def write_job(job: Job) -> bytes:
    """Return compact JSON of the fields that were set; a reader fills in the defaults."""
    return Job.__pydantic_serializer__.to_json(job, exclude_unset=True, exclude_none=True, by_alias=True)


def write_result(result: Result) -> bytes:
    """Return compact JSON without fields that are None. Equal results always give equal bytes."""
    return Result.__pydantic_serializer__.to_json(result, exclude_none=True)


def write_plain_result(
    received: ReceivedJob,
    text: str,
    confidence: float | None,
    finish_reason: str,
    usage: dict[str, object],
    timings: Mapping[str, float],
    model_id: str,
    engine: str,
    created_at: int,
) -> bytes:
    """Return the bytes that `write_result` gives for the succeeded result of a job that `is_plain`.

    Making and checking the `Result` would take four times as long. `usage` and `timings` hold the members that are not
    None; `created_at` is in Unix seconds.
    """
    job = received.job
    optional: dict[str, object] = {} if job.custom_id is None else {"custom_id": job.custom_id}
    sure: dict[str, object] = {} if confidence is None else {"confidence": confidence}
    return to_json(
        {
            "job_id": received.job_id,
            **optional,
            "model_id": model_id,
            "outcome": Outcome.SUCCEEDED.value,
            "text": text,
            **sure,
            "sources": [],
            "source_details": [],
            "citations": [],
            "notes": [],
            "usage": usage,
            "finish_reason": finish_reason,
            "timings": timings,
            "engine": engine,
            "metadata": job.metadata,
            "created_at": created_at,
        }
    )


def read_result(value: bytes | None) -> Result:
    """Return the result in the value of a record of `model_results`. Raises InvalidResult."""
    try:
        result: Result = Result.__pydantic_validator__.validate_json(value or b"")
    except ValidationError as error:
        raise InvalidResult("; ".join(str(problem) for problem in problems_of(error))) from None
    return result


def rejected_result(invalid: InvalidJob, created_at: int) -> Result:
    """Return the result that tells an invalid job's author its problems; `created_at` is in Unix seconds.

    The result repeats only identifiers from the input: the job's ids, and the name of a model that no engine has.
    The model's name is cut and quoted.
    """
    return Result(
        job_id=invalid.job_id,
        custom_id=invalid.custom_id,
        outcome=Outcome.REJECTED,
        error=ResultError(code=invalid.code, message=str(invalid)),
        screening=list(invalid.screening) or None,
        created_at=created_at,
    )


class _Refused(Exception):  # noqa: N818 - private, becomes InvalidJob
    """The body is not a job. `document` is the body's JSON, as far as it could be read."""

    def __init__(self, document: object, *problems: Problem) -> None:
        super().__init__()
        self.document = document
        self.problems = problems


def _read_body(value: bytes | None) -> tuple[Job, UnknownFields | None]:
    if not value:
        raise _Refused(None, Problem("value", "is empty"))
    if len(value) > MAX_JOB_BYTES:
        raise _Refused(_document(value), Problem("value", f"is larger than {MAX_JOB_BYTES} bytes"))
    if _BODY in value and openai.is_batch_line(document := _document(value)):
        return _read_line(document)  # the error that it is no job would take twice as long as this
    try:
        job: Job = Job.__pydantic_validator__.validate_json(value, strict=True, extra="allow")
    except ValidationError as error:
        document = _document(value)
        if openai.is_batch_line(document):  # its names have escaped characters
            return _read_line(document)
        raise _Refused(document, *problems_of(error)) from None
    return job, taken_from(job) if job.__pydantic_extra__ or not job.is_plain else None


def _read_line(document: dict[str, Any]) -> tuple[Job, UnknownFields | None]:
    try:
        return read_batch_line(document)
    except UnusableLine as unusable:
        raise _Refused(document, *unusable.problems) from None


def _document(value: bytes) -> object:
    """Return the parsed JSON; None for bytes that are not JSON, and for too many bytes.

    If a key occurs more than once, its last value is used, as when the model `Job` reads the JSON.
    """
    if len(value) > _READABLE_BYTES:
        return None
    try:
        return from_json(value)
    except ValueError:
        return None


def _conflicts(job: Job, said: dict[str, str]) -> tuple[Problem, ...]:
    """Return a problem for each header that disagrees with the body.

    A deadline in the headers never conflicts with the body's TTL, because the deadline is derived from that TTL.
    """
    body = {topics.JOB_ID: job.job_id}
    if "priority" in job.model_fields_set:
        body[topics.PRIORITY] = str(job.priority)
    return tuple(
        Problem(f"headers.{name}", "is not what the body says")
        for name, stated in body.items()
        if stated is not None and said.get(name, stated) != stated
    )


def _wrong_deadline(said: dict[str, str], timestamp_ms: int) -> tuple[Problem, ...]:
    """Return a problem if the deadline is in seconds, or beyond the lane's retention.

    Kafka could delete a job that outlives the retention without a result.
    """
    deadline = int(said.get(topics.DEADLINE, 0))
    if _EARLIEST_SECONDS <= deadline < 100 * _EARLIEST_SECONDS < timestamp_ms:
        reason = "is in Unix seconds; write Unix milliseconds, a thousand times as many"
    elif deadline > timestamp_ms + topics.LANES_KEPT_MS:
        reason = "is further off than the seven days for which a lane keeps a job"
    else:
        return ()
    return (Problem(f"headers.{topics.DEADLINE}", reason),)


def _origin(said: dict[str, str], value: bytes | None, place: Origin) -> Origin:
    """Return the record's `job-origin` if the `webhook-id` is derived from it; else `place`."""
    if topics.JOB_ORIGIN not in said or topics.WEBHOOK_ID not in said:
        return place
    carried = Origin.parse(said[topics.JOB_ORIGIN])
    return carried if carried.webhook_id(value) == said[topics.WEBHOOK_ID] else place


def _received(
    job: Job,
    unknown: UnknownFields | None,
    said: dict[str, str],
    value: bytes | None,
    place: Origin,
    timestamp_ms: int,
) -> ReceivedJob:
    origin = _origin(said, value, place)
    get = said.get
    deadline = get(topics.DEADLINE)
    return ReceivedJob(
        job=job,
        job_id=job.job_id or get(topics.JOB_ID) or f"job_{origin.digest}",
        tenant=get(topics.TENANT, DEFAULT_TENANT),
        webhook_id=origin.webhook_id(value),
        place=place,
        origin=origin,
        deadline_ms=int(deadline) if deadline else job.begins_ms(timestamp_ms) + round(job.ttl_seconds * 1000),
        priority=int(get(topics.PRIORITY, job.priority)),
        traceparent=get(topics.TRACEPARENT),
        received_ms=timestamp_ms,
        idempotency_key=get(topics.IDEMPOTENCY_KEY),
        unknown=unknown,
        screening=read_findings(said[topics.SCREENING]) if topics.SCREENING in said else (),
        wants_deltas=topics.DELTAS in said,
    )


_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)
_CUSTOM_ID: TypeAdapter[str] = TypeAdapter(CustomId)
_URL: TypeAdapter[str] = TypeAdapter(Url)


def address_in(document: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the `custom_id` and the callback's URL of a job's JSON, as far as they are valid."""
    callback = openai.callback_of(document) if openai.is_batch_line(document) else document.get("callback_url")
    return _valid(_CUSTOM_ID, document.get("custom_id")), _valid(_URL, callback)


def _invalid(
    problems: tuple[Problem, ...], document: object, said: dict[str, str], origin: Origin, value: bytes | None
) -> InvalidJob:
    """Build the error with the ids and the callback URL that could be read safely."""
    body = document if isinstance(document, dict) else {}
    custom_id, callback_url = address_in(body)
    return InvalidJob(
        problems,
        job_id=_valid(_IDENTIFIER, body.get("job_id")) or said.get(topics.JOB_ID) or f"job_{origin.digest}",
        tenant=said.get(topics.TENANT, DEFAULT_TENANT),
        webhook_id=origin.webhook_id(value),
        origin=origin,
        custom_id=custom_id,
        callback_url=callback_url,
        traceparent=said.get(topics.TRACEPARENT),
    )


def _valid(kind: TypeAdapter[str], value: object) -> str | None:
    try:
        return kind.validate_python(value, strict=True)
    except ValidationError:
        return None


# -- the headers of a job's record -----------------------------------------------------------------------------------
class _HeaderRule(NamedTuple):
    pattern: re.Pattern[str]
    reason: str | None
    """The problem to report. If the reason is None, a value that does not match is treated as absent."""


def _rule(pattern: str, reason: str | None) -> _HeaderRule:
    return _HeaderRule(re.compile(pattern), reason)


_PLACE = r"[A-Za-z0-9._+/-]{1,249}:[0-9]{1,10}:[0-9]{1,19}"
"""An origin as text: the topic's UUID, partition and offset.

librdkafka writes a UUID as 22 characters of base64 with `+` and `/` (RFC 4648, section 4); Kafka's tools write `-` and
`_`.
"""
_NOT_AN_IDENTIFIER = "is not 1 to 256 characters of printable ASCII without spaces"
_HEADER_RULES = {
    topics.TENANT: _rule(
        TENANT_PATTERN, "is not a tenant: 1 to 63 letters, digits, `_` or `-`, a letter or digit first"
    ),
    topics.DEADLINE: _rule(r"[0-9]{1,15}", "is not a time in Unix milliseconds"),
    topics.PRIORITY: _rule(r"[0-9]", "is not a number from 0 to 9"),
    topics.IDEMPOTENCY_KEY: _rule(r"[\x21-\x7e]{1,256}", _NOT_AN_IDENTIFIER),
    topics.SCHEMA: _rule(r"1(\.[0-9]{1,4})?", "is not a known version of the job's schema: only version 1 is known"),
    topics.JOB_ID: _rule(r"[\x21-\x7e]{1,256}", _NOT_AN_IDENTIFIER),
    # Any producer can write headers, so these two are used only if the `webhook-id` is derived from the `job-origin`.
    topics.WEBHOOK_ID: _rule(r"msg_[0-9a-f]{32}", None),
    topics.JOB_ORIGIN: _rule(_PLACE, None),
    topics.TRACEPARENT: _rule(topics.TRACEPARENT_FORMAT.pattern, None),
    topics.SCREENING: _rule(r"[\x20-\x7e]{1,16384}", None),
    topics.DELTAS: _rule("1", None),
}


def _read_headers(headers: Headers) -> tuple[dict[str, str], tuple[Problem, ...]]:
    """Return the job headers with usable values, by name, and the problems of the others."""
    said: dict[str, str] = {}
    problems: list[Problem] = []
    for name, data in dict(headers).items():
        rule = _HEADER_RULES.get(name)
        if rule is None or data is None:
            continue
        text = data.decode("latin-1")
        if rule.pattern.fullmatch(text):
            said[name] = text
        elif rule.reason is not None:
            problems.append(Problem(f"headers.{name}", rule.reason))
    return said, tuple(problems)
