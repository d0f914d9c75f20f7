"""Follows results, callback attempts and dead letters of the whole fleet as they are written."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kafka import TopicPartition

from cli.operations.deliveries import CallbackStep, read_step
from producers.connection import kafka_errors_translated, partition_counts
from producers.reader import CommittedReader
from producers.scan import Stored, stored
from schemas.codec import InvalidResult, read_result
from schemas.settings import KafkaSettings

_POLL_MS = 500
_REMEMBERED_JOBS = 10_000
_STEPS_PER_JOB = 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """The events to show.

    Only results have a model and an outcome; a job's other events are shown if the job's result is shown.
    """

    tenant: str | None = None
    job_prefix: str = ""
    model: str | None = None
    outcome: str | None = None

    def takes(self, step: CallbackStep) -> bool:
        """Return whether the step's tenant and job are wanted."""
        return self.tenant in (None, step.tenant) and step.job_id.startswith(self.job_prefix)

    def takes_result(self, step: CallbackStep) -> bool:
        """Return whether a result's model and outcome are wanted."""
        facts = step.facts
        return self.model in (None, facts.get("model")) and self.outcome in (None, facts.get("outcome"))

    @property
    def is_by_result(self) -> bool:
        """True if a job's result decides which of the job's other events are shown."""
        return self.model is not None or self.outcome is not None


class Tail(CommittedReader):
    """Reads the events written since a time, or from now on. The constructor and `poll` raise ProducerError."""

    def __init__(self, settings: KafkaSettings, wanted: EventFilter, since_ms: int | None = None) -> None:
        names = settings.topics
        counts = partition_counts(settings, [names.results, names.attempts, names.dead_letters])
        super().__init__(settings)
        self._wanted = wanted
        self._shown: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._undecided: OrderedDict[tuple[str, str], list[CallbackStep]] = OrderedDict()
        partitions = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
        with kafka_errors_translated(settings):
            self._consumer.assign(partitions)
            ends = self._consumer.end_offsets(partitions)
            starts = ends if since_ms is None else self._at(partitions, since_ms, ends)
            for partition, offset in starts.items():
                self._consumer.seek(partition, offset)

    def poll(self) -> list[CallbackStep]:
        """Return the wanted events since the last call, by time; wait up to half a second for the first."""
        with kafka_errors_translated(self._settings):
            batches = self._consumer.poll(timeout_ms=_POLL_MS)
        steps = [self._step(stored(record)) for records in batches.values() for record in records]
        found = sorted((step for step in steps if step is not None), key=lambda step: step.at_ms)
        return [shown for step in found if self._wanted.takes(step) for shown in self._decided(step)]

    def _step(self, record: Stored) -> CallbackStep | None:
        step = read_step(record, self._settings)
        if step is None or step.what != "settled":
            return step
        return replace(step, facts={**step.facts, "model": _model_of(record)})

    def _decided(self, step: CallbackStep) -> list[CallbackStep]:
        """Process one more step, and return the steps to show now.

        A job's other steps wait for its result, because brokers may deliver an attempt's record before it.
        """
        if not self._wanted.is_by_result:
            return [step]
        job = (step.tenant, step.job_id)
        if step.what != "settled":
            if job in self._shown:
                return [step]
            _remember(self._undecided, job, [*self._undecided.get(job, []), step][:_STEPS_PER_JOB])
            return []
        early = self._undecided.pop(job, [])
        if not self._wanted.takes_result(step):
            return []
        _remember(self._shown, job, None)
        return [step, *early]


def _remember(known: OrderedDict[tuple[str, str], T], job: tuple[str, str], value: T) -> None:
    """Set the job's value, and forget the oldest job if there are too many.

    So memory stays bounded if a command runs for days.
    """
    known[job] = value
    if len(known) > _REMEMBERED_JOBS:
        known.popitem(last=False)


def _model_of(record: Stored) -> Any:
    try:
        return read_result(record.value).model_id
    except InvalidResult:
        return None
