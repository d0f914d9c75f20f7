"""The last resort of each role's stage: outputs for a record whose handler raised even in `give_up`.

The functions never raise, and always return outputs that a broker accepts: unreadable parts of the record are left out.
After an upgrade, `postback dead-letters redrive` puts the record back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from schemas import topics as names
from schemas.codec import InvalidJob, Origin, UntrustedJob, read_address, write_result
from schemas.job import DEFAULT_TENANT
from schemas.outcome import Outcome
from schemas.result import Result, ResultError
from schemas.topics import Topics
from schemas.trust import TrustSecrets
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.inference.admission import require_signature
from workers.inference.job_identity import identity_headers, job_letter
from workers.stage.dead_letters import dead_letter
from workers.stage.defects import LastResort
from workers.stage.record import Failure, Header, Output, Record

_WAITING = frozenset(names.WAITING_HEADERS)


def for_jobs(
    topics: Topics, topic_ids: Mapping[str, str], clock: Clock, metrics: Metrics, trust: TrustSecrets | None = None
) -> LastResort:
    """Return the last resort for jobs: a failed result under the job's identity, and the record as a dead letter.

    With `trust`, a job without a signature by one of these secrets gets no callback. The result of such a job repeats
    no id that the job states.
    """

    def outputs(record: Record, failure: Failure) -> Sequence[Output]:
        plain = _sendable(record)
        origin = Origin(topic_ids.get(record.topic, record.topic), record.partition, record.offset)
        whose = _whose(plain, origin, trust)
        result = Result(
            job_id=whose.job_id,
            custom_id=whose.custom_id,
            outcome=Outcome.FAILED,
            error=ResultError(code=failure.code, message=failure.message),
            created_at=int(clock.time()),
        )
        headers = identity_headers(whose.tenant, whose.job_id, whose.webhook_id, whose.traceparent)
        if whose.callback_url is not None:
            headers.append((names.CALLBACK_URL, whose.callback_url.encode()))  # delivery checks the URL
        metrics.jobs.labels(result.outcome).inc()
        metrics.dead_letters.labels(failure.code).inc()
        letter = job_letter(topics.dead_letters, plain, whose, failure.code, failure.message, failure.attempts)
        return [Output(topics.results, write_result(result), whose.job_id.encode(), headers), letter]

    return outputs


def for_callbacks(topics: Topics, metrics: Metrics) -> LastResort:
    """Return the last resort for callbacks: the record as a dead letter, without the headers about waiting."""

    def outputs(record: Record, failure: Failure) -> Sequence[Output]:
        plain = _sendable(record)
        carried = [(name, value) for name, value in plain.headers or () if name not in _WAITING]
        metrics.dead_letters.labels(failure.code).inc()
        letter = dead_letter(topics.dead_letters, plain, failure.code, failure.message, failure.attempts, carried)
        return [letter]

    return outputs


def _whose(record: Record, origin: Origin, trust: TrustSecrets | None) -> InvalidJob:
    """Return the job's identity and callback. An unreadable record is identified by topic, partition and offset."""
    try:
        whose = read_address(record.value, record.headers, origin)
        require_signature(trust, record, whose, origin)
        return whose
    except UntrustedJob as untrusted:
        return untrusted
    except Exception:  # not logged here, because the stage has logged the defect already
        return InvalidJob(
            (),
            job_id=f"job_{origin.digest}",
            tenant=DEFAULT_TENANT,
            webhook_id=origin.webhook_id(record.value),
            origin=origin,
        )


def _sendable(record: Record) -> Record:
    """Return the record without the headers whose names the client cannot encode."""
    return replace(record, headers=[header for header in record.headers or () if _is_writable(header)])


def _is_writable(header: Header) -> bool:
    try:
        return b"\0" not in header[0].encode()
    except UnicodeEncodeError:
        return False
