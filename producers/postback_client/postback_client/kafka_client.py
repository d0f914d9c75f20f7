"""The client over Kafka, on kafka-python. Source of topics and headers: the fleet's published AsyncAPI document.

    with KafkaClient("kafka-0:9092", tenant="acme", security_protocol="SASL_SSL", …) as client:
        for result in client.stream(client.submit([Job(prompt="Why is the sky blue?")])):
            print(result.text)

A fleet that accepts only signed tenants (`POSTBACK_WORKER__TRUST=signed`) takes jobs only through its gateway.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors

from postback_client.client import PostbackClient, Submitted
from postback_client.clock import MACHINE, ClientClock, TimeLimit
from postback_client.errors import KafkaFailed, PostbackError, StillWaiting, SubmitFailed, UnreadableAnswer
from postback_client.job import Lane, NamedJob, named_jobs
from postback_client.shapes import parsed, read
from postback_client.sharding import DEFAULT_TENANT, Shard, prefix_of
from postback_client.wire import Job, Result

ACCEPT_SECONDS = 60.0
"""The longest wait for a job's acknowledgement."""
_IN_FLIGHT = 10_000
_MOST_OWN = 200_000
"""The largest number of jobs that a client remembers until it has returned their results. For older jobs, `stream`
reads results again."""
_MAX_REQUEST_BYTES = 576 * 1024
_POLL_MS = 200


@dataclass(frozen=True, slots=True)
class _Sent:
    """A job that was sent. Its acknowledgement may still be missing."""

    job_id: str
    future: Any
    submitted: Submitted


class KafkaClient(PostbackClient):
    """A tenant's client on the fleet's topics, for use by one thread.

    The client reads results from its construction on, or from `since_seconds` before it. Results of jobs that ended
    earlier are not found. `kafka` are further arguments of kafka-python's clients, such as `security_protocol`. Raises
    KafkaFailed if Kafka does not answer.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        tenant: str = DEFAULT_TENANT,
        topic_prefix: str = "",
        since_seconds: float = 0.0,
        clock: ClientClock = MACHINE,
        **kafka: Any,
    ) -> None:
        self._clock = clock
        self._tenant = tenant
        self._prefix = topic_prefix
        self._own: dict[str, Result | None] = {}
        """The jobs of this client whose results were not returned yet, each with its result if that has arrived."""
        self._shards: dict[str, Shard] = {}
        config = {"bootstrap_servers": bootstrap_servers.split(","), "bootstrap_timeout_ms": 10_000, **kafka}
        with _kafka():
            self._consumer: Any = KafkaConsumer(
                **config,
                group_id=None,
                enable_auto_commit=False,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
            )
        try:
            with _kafka():
                self._begin_at = self._first_offsets(since_seconds)
                self._producer: Any = KafkaProducer(
                    **config,
                    acks="all",
                    allow_auto_create_topics=False,
                    delivery_timeout_ms=round(ACCEPT_SECONDS * 1000),
                    enable_idempotence=True,
                    linger_ms=5,
                    max_request_size=_MAX_REQUEST_BYTES,
                )
        except BaseException:
            self._consumer.close()
            raise

    def submit(self, jobs: Iterable[Job | Mapping[str, Any]], *, lane: Lane = "default") -> list[str]:
        """Submit jobs, wait until Kafka has all of them, and return their ids in the same order. Raises SubmitFailed.

        The producer is idempotent, so its own retries send no job twice. If the caller repeats a call, its jobs are
        sent again.
        """
        topic = f"{self._prefix}model_requests{ {'bulk': '.batch', 'spare': '.spare'}.get(lane, '') }"
        accepted: list[str] = []
        sent: deque[_Sent] = deque()
        try:
            with _kafka():
                for job in named_jobs(jobs, self._clock):
                    sent.append(self._send(topic, job))
                    if len(sent) >= _IN_FLIGHT:
                        accepted.append(_acknowledged(sent))
                while sent:
                    accepted.append(_acknowledged(sent))
        except PostbackError as error:
            for each in sent:
                each.submitted.end(failed=True)
            raise SubmitFailed(accepted, [each.job_id for each in sent], error) from error
        finally:
            self._remember(accepted)
        return accepted

    def stream(self, job_ids: Iterable[str], timeout: float | None = None) -> Iterator[Result]:
        """Yield the result of each job, as soon as the job has one. Raises StillWaiting after `timeout` seconds.

        For jobs that this client has not submitted, results are read again from the client's first position.
        """
        limit, awaited = TimeLimit(self._clock, timeout), dict.fromkeys(job_ids)
        if not awaited.keys() <= self._own.keys():
            for partition, offset in self._begin_at.items():
                self._consumer.seek(partition, offset)
        for job_id in list(awaited):
            result = self._own.get(job_id)
            if result is not None:
                del awaited[job_id], self._own[job_id]
                yield result
        while awaited:
            if limit.passed:
                raise StillWaiting(list(awaited))
            for result in self._poll(limit):
                if result.job_id in awaited:
                    del awaited[result.job_id]
                    self._own.pop(result.job_id, None)
                    yield result
                elif result.job_id in self._own:
                    self._own[result.job_id] = result

    def cancel(self, job_id: str) -> None:
        """Ask the workers to cancel a job. A job that already has a result keeps that result."""
        order = {"tenant": self._tenant, "job_id": job_id, "state": "cancelled", "at": round(self._clock.time() * 1000)}
        with _kafka():
            self._producer.send(
                f"{self._prefix}job_control",
                key=_compact([self._tenant, job_id]),
                value=_compact(order),
                partition=0,
            ).get(timeout=ACCEPT_SECONDS)

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
        with _kafka():
            self._producer.close(timeout=5)

    def _remember(self, job_ids: Iterable[str]) -> None:
        self._own.update(dict.fromkeys(job_ids))
        while len(self._own) > _MOST_OWN:
            del self._own[next(iter(self._own))]

    def _send(self, topic: str, job: NamedJob) -> _Sent:
        if topic not in self._shards:
            count = len(self._producer.partitions_for(topic) or ())
            if not count:
                raise KafkaFailed(f"the topic {topic} does not exist; check the topic prefix")
            self._shards[topic] = Shard(self._tenant, count)
        submitted = Submitted(job.job_id)
        named = {"tenant": self._tenant, **submitted.headers}
        future = self._producer.send(
            topic,
            value=job.body,
            key=job.job_id.encode(),
            headers=[(name, value.encode()) for name, value in named.items()],
            partition=self._shards[topic].next(prefix_of(json.loads(job.body))),
        )
        return _Sent(job.job_id, future, submitted)

    def _first_offsets(self, since_seconds: float) -> dict[Any, int]:
        """Assign all partitions of `model_results` to the consumer, and return the offsets at which reading begins."""
        topic = f"{self._prefix}model_results"
        partitions = [TopicPartition(topic, each) for each in self._consumer.partitions_for_topic(topic) or ()]
        if not partitions:
            raise KafkaFailed(f"the topic {topic} does not exist; check the topic prefix")
        self._consumer.assign(partitions)
        starts: dict[Any, int] = self._consumer.end_offsets(partitions)
        if since_seconds > 0:
            at_ms = max(0, round((self._clock.time() - since_seconds) * 1000))
            found = self._consumer.offsets_for_times(dict.fromkeys(partitions, at_ms))
            starts |= {each: place.offset for each, place in found.items() if place is not None}
        for partition, offset in starts.items():
            self._consumer.seek(partition, offset)
        return starts

    def _poll(self, limit: TimeLimit) -> list[Result]:
        """Return the tenant's new results; wait for a short time if there are none."""
        with _kafka():
            batches = self._consumer.poll(timeout_ms=round(limit.within(_POLL_MS / 1000) * 1000))
        records = (record for batch in batches.values() for record in batch)
        return [result for record in records if (result := self._result_of(record)) is not None]

    def _result_of(self, record: Any) -> Result | None:
        """Return the result in a record; None if it is another tenant's result, or if no worker wrote the record."""
        tenant = dict(record.headers or ()).get("tenant") or DEFAULT_TENANT.encode()
        if tenant != self._tenant.encode() or record.value is None:
            return None
        try:
            return read(Result, parsed(record.value))
        except UnreadableAnswer:
            return None


def _acknowledged(sent: deque[_Sent]) -> str:
    """Wait for the oldest job's acknowledgement, and return the job's id."""
    oldest = sent[0]
    oldest.future.get(timeout=2 * ACCEPT_SECONDS)  # without a timeout, kafka-python waits forever for a frozen broker
    oldest.submitted.end()
    sent.popleft()
    return oldest.job_id


def _compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@contextmanager
def _kafka() -> Iterator[None]:
    """Translate kafka-python's errors. The errors' texts name topics, sizes and times, never values."""
    try:
        yield
    except kafka_errors.KafkaError as error:
        raise KafkaFailed(f"{type(error).__name__.removesuffix('Error')}: {error}") from None
