"""Submit jobs to the fleet.

Each job gets an id, goes to one of its tenant's partitions, and is acknowledged (acks=all).

    with Client(KafkaSettings()) as client:
        receipt = client.submit([Job(prompt="Why is the sky blue?", callback_url="https://example.com/hook")])

Any Kafka client can send `{"prompt": …, "callback_url": …}` to `model_requests` instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from producers.connection import abandon, connect, partition_counts
from producers.identity import new_job_id
from producers.sharding import Partitioner
from schemas import topics
from schemas.codec import write_job
from schemas.job import DEFAULT_TENANT, MAX_JOB_BYTES, Job
from schemas.settings import KafkaSettings
from schemas.topics import Lane
from schemas.trust import TrustSecrets
from telemetry.clock import Clock, Deadline, SystemClock
from telemetry.traces import Kind, OpenSpan, TraceContext, begin_span, collecting

DELIVERY_SECONDS = 60.0
"""Longest wait for a job's acknowledgement, long enough for a broker's restart. After this wait, the job is given
up."""

_IN_FLIGHT_BYTES = 32 * 1024 * 1024
"""Largest number of bytes in jobs that are sent and not yet acknowledged. It is enough to fill batches, and limits
memory."""

_REFUSALS = (
    kafka_errors.AuthorizationError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidTopicError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.PolicyViolationError,
    kafka_errors.RecordListTooLargeError,
)
"""Errors after which the broker certainly does not have the job. After all other errors, the broker may have the
job."""

_LINGER_MS = 20
_BATCH_BYTES = 256 * 1024
_MAX_REQUEST_BYTES = MAX_JOB_BYTES + 64 * 1024
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class SubmitError:
    """A job that Kafka has not acknowledged."""

    index: int
    """Index among the submitted jobs, from 0."""
    job_id: str
    reason: str
    perhaps: bool
    """True if Kafka may have the job, because it was sent and the acknowledgement may be lost."""


@dataclass(slots=True)
class Submission:
    """The outcome of a submission."""

    job_ids: list[str] = field(default_factory=list)
    """Ids of the accepted jobs, in the order of submission."""
    errors: list[SubmitError] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Number of jobs that Kafka has for certain."""
        return len(self.job_ids)


@dataclass(frozen=True, slots=True)
class _Sent:
    index: int
    job_id: str
    size: int
    future: Any
    span: OpenSpan | None
    deadline: Deadline


OnAnswer = Callable[[int, SubmitError | None], None]
"""Called for each job with its index and its error; the error is None if Kafka has the job."""


def _ignore(index: int, error: SubmitError | None) -> None:
    return None


class Client:
    """An idempotent producer with acks=all. One client per process is enough; only one thread at a time may use it.

    If `trust` is given, the client signs each job's tenant. Raises ProducerError if Kafka cannot be reached.
    """

    def __init__(self, settings: KafkaSettings, clock: Clock = _CLOCK, trust: TrustSecrets | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._trust = trust
        self._partitioner = Partitioner()
        self._partitions: dict[str, int] = {}
        self._silent = False
        self._producer = connect(
            KafkaProducer,
            settings,
            acks="all",
            allow_auto_create_topics=False,
            batch_size=_BATCH_BYTES,
            delivery_timeout_ms=round(DELIVERY_SECONDS * 1000),
            enable_idempotence=True,
            linger_ms=_LINGER_MS,
            max_request_size=_MAX_REQUEST_BYTES,
        )

    def submit(
        self,
        jobs: Iterable[Job],
        *,
        tenant: str = DEFAULT_TENANT,
        lane: Lane = "default",
        on_answer: OnAnswer = _ignore,
    ) -> Submission:
        """Send jobs, and wait until each is acknowledged or given up. A failed job does not stop the others.

        A job without a `job_id` gets one. Jobs in the `lane` `bulk` may wait behind all jobs of the default lane, and
        jobs in `spare` run only while no other job waits.
        `on_answer` is called for each job when it is acknowledged or given up. Raises TopicMissing, AccessRefused and
        BrokerUnreachable before the first job is sent.
        """
        topic = self._settings.topics.lane(lane)
        partitions = self._partitions_of(topic)
        submission = _Submission(Submission(), on_answer, self._clock)
        for index, job in enumerate(jobs):
            named = job if job.job_id else job.model_copy(update={"job_id": new_job_id(self._clock)})
            submission.add(index, named, lambda *record: self._send(topic, partitions, tenant, *record))
        submission.settle_down_to(0)
        self._silent = submission.silent
        return submission.receipt

    def close(self) -> None:
        """Disconnect. No job is lost by this, because `submit` waits until each job is acknowledged or given up."""
        if self._silent:
            abandon(self._producer)
        else:
            self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, treat Kafka as silent, so that `close` does not wait for jobs that are still buffered.
        self._silent = self._silent or error is not None
        self.close()

    def _send(
        self, topic: str, partitions: int, tenant: str, value: bytes, key: bytes, context: TraceContext | None
    ) -> Any:
        signed = self._trust.signed(tenant, key.decode(), value) if self._trust else [(topics.TENANT, tenant.encode())]
        headers = [*signed, *([(topics.TRACEPARENT, context.traceparent.encode())] if context is not None else ())]
        partition = self._partitioner.partition(topic, tenant, partitions, value)
        return self._producer.send(topic, value, key, headers, partition)

    def _partitions_of(self, topic: str) -> int:
        if topic not in self._partitions:
            self._partitions |= partition_counts(self._settings, [topic])
        return self._partitions[topic]


class _Submission:
    """The state of one call of `submit`: the jobs in flight, and the outcome of finished jobs.

    The total size of the jobs in flight is limited.
    """

    def __init__(self, receipt: Submission, on_answer: OnAnswer, clock: Clock) -> None:
        self.receipt = receipt
        self.silent = False
        """True if a job's deadline has passed without an answer. From then on, no more jobs are sent."""
        self._on_answer = on_answer
        self._clock = clock
        self._traced = collecting()
        self._sent: deque[_Sent] = deque()
        self._bytes = 0

    def add(self, index: int, job: Job, send: Callable[[bytes, bytes, TraceContext | None], Any]) -> None:
        """Send a job, unless it is too large or Kafka is silent. The job's span lasts until the acknowledgement."""
        job_id = job.job_id or ""
        value = write_job(job)
        if len(value) > MAX_JOB_BYTES:
            self._give_up(SubmitError(index, job_id, f"the job is larger than {MAX_JOB_BYTES} bytes", perhaps=False))
            return
        if self.silent:
            self._give_up(SubmitError(index, job_id, "Kafka stopped answering, so the job was not sent", perhaps=False))
            return
        span = begin_span("submit", None, {"job_id": job_id}, kind=Kind.PRODUCER) if self._traced else None
        try:
            future = send(value, job_id.encode(), span.context if span is not None else None)
        except kafka_errors.KafkaError as error:
            _end(span, failed=True)
            self._give_up(SubmitError(index, job_id, _reason(error), perhaps=False))
            return
        # kafka-python's own timeout does not end a wait for a frozen broker; this deadline does.
        deadline = Deadline.after(self._clock, 2 * DELIVERY_SECONDS)
        self._sent.append(_Sent(index, job_id, len(value), future, span, deadline))
        self._bytes += len(value)
        self._settle_done()
        self.settle_down_to(_IN_FLIGHT_BYTES)

    def settle_down_to(self, limit_bytes: int) -> None:
        """Wait for the oldest jobs until at most `limit_bytes` are in flight; 0 waits for all jobs."""
        while self._sent and (self._bytes > limit_bytes or limit_bytes == 0):
            self._settle_oldest()

    def _settle_done(self) -> None:
        while self._sent and self._sent[0].future.is_done:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        sent = self._sent.popleft()
        self._bytes -= sent.size
        try:
            sent.future.get(timeout=max(0.0, sent.deadline.remaining))
        except kafka_errors.KafkaError as error:
            _end(sent.span, failed=True)
            self.silent = self.silent or not sent.future.is_done
            perhaps = not isinstance(error, _REFUSALS)
            self._give_up(SubmitError(sent.index, sent.job_id, _reason(error), perhaps=perhaps))
        else:
            _end(sent.span, failed=False)
            self.receipt.job_ids.append(sent.job_id)
            self._on_answer(sent.index, None)

    def _give_up(self, error: SubmitError) -> None:
        self.receipt.errors.append(error)
        self._on_answer(error.index, error)


def _end(span: OpenSpan | None, *, failed: bool) -> None:
    if span is not None:
        span.end(failed=failed)


def _reason(error: kafka_errors.KafkaError) -> str:
    """Return the error as a text for people.

    This is safe, because kafka-python's texts name topics, sizes and times, never values.
    """
    if isinstance(error, kafka_errors.KafkaTimeoutError):
        return "Kafka did not acknowledge the job in time"
    return str(error)
