"""A bounded look into the lanes and the tiers of jobs: which jobs wait for an answer, and which were never seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from cli.operations.backlog import DoneOffsets, standings
from producers.scan import Range, Scanner, Stored
from schemas import topics
from schemas.codec import InvalidJob, Origin, ReceivedJob, read_job
from schemas.groups import INFERENCE_GROUP
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock

LOOK_SECONDS = 10.0
"""Longest look, since lanes may hold millions of jobs."""
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a look."""

    waiting: frozenset[str]
    """The wanted ids of jobs that wait, or run."""
    is_whole: bool
    """True if all waiting jobs were read, or all wanted ids were found: then any other id was never seen."""

    starts_ms: Mapping[str, int] = field(default_factory=dict)
    """For each of the waiting jobs that start later, the time before which it does not start, in Unix milliseconds."""

    def of_others(self) -> str:
        """Return the words for a wanted id that was not found."""
        return "never seen" if self.is_whole else f"not seen within {LOOK_SECONDS:g} s of reading"


def look_into_lanes(
    settings: KafkaSettings,
    scanner: Scanner,
    done_offsets: DoneOffsets,
    wanted: Collection[str],
    tenant: str | None = None,
    clock: Clock = _CLOCK,
) -> Look:
    """Look for jobs by their ids, or by their events' webhook-ids. Raises ProducerError.

    Records that the ledgers call done are passed by. Without a `tenant`, jobs of any tenant count.
    """
    found: set[str] = set()
    starts_ms: dict[str, int] = {}
    tiers = settings.topics.later.values()
    left, deadline = set(wanted), Deadline.after(clock, LOOK_SECONDS)
    for each in standings(settings):
        if (each.group != INFERENCE_GROUP and each.topic not in tiers) or each.base >= each.end:
            continue
        done = done_offsets(each.base, each.metadata)
        for record in scanner.read([Range(each.topic, each.partition, each.base, each.end)]):
            if not left or deadline.passed:
                return Look(frozenset(found), not left, starts_ms)
            if not done >> (record.place.offset - each.base) & 1:
                seen = left & _ids_of(record, each.topic_id, tenant)
                found |= seen
                if each.topic in tiers:
                    starts_ms |= dict.fromkeys(seen, int(record.header(topics.NOT_BEFORE) or 0))
                left -= seen
    return Look(frozenset(found), True, starts_ms)


def _ids_of(record: Stored, topic_id: str, tenant: str | None) -> set[str]:
    """Return the ids of the record's job; none for another tenant's job."""
    origin = Origin(topic_id, record.place.partition, record.place.offset)
    said: ReceivedJob | InvalidJob
    try:
        said = read_job(record.value, record.headers, origin, record.at_ms)
    except InvalidJob as invalid:
        said = invalid
    return {said.job_id, said.webhook_id} if tenant in (None, said.tenant) else set()
