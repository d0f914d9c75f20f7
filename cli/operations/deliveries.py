"""The timeline of a job's callback: settled, tried, waiting, given up, put back.

It is read from the fleet's topics only. `callback_attempts` has each POST's outcome and never its body. An attempt's
record has an excerpt of the answer's body if a setting of delivery asks for it. A tier's record has the time at which
the callback's wait ends. Each deferral without a try writes a new record, hundreds of them in an outage. All of these
records become one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic_core import from_json

from producers.scan import Scanner, Stored
from producers.times import show_time
from schemas import topics
from schemas.codec import InvalidResult, read_result
from schemas.settings import KafkaSettings
from telemetry.logs import origin_of

What = Literal["settled", "attempt", "waiting", "dead_letter", "redriven"]


@dataclass(frozen=True, slots=True)
class CallbackStep:
    """One event in the life of a job or its callback."""

    at_ms: int
    what: What
    tenant: str
    job_id: str
    webhook_id: str | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def whose(self) -> tuple[str, str, str | None]:
        """The job and the event to which this step belongs."""
        return self.tenant, self.job_id, self.webhook_id

    def said(self) -> dict[str, Any]:
        """Return the step as a JSON object for programs."""
        identity = {"tenant": self.tenant, "job_id": self.job_id, "webhook_id": self.webhook_id}
        return {"at": show_time(self.at_ms), "what": self.what, **identity, **self.facts}


def deliveries(
    settings: KafkaSettings,
    scanner: Scanner,
    wanted: str,
    tenant: str | None = None,
    since_ms: int | None = None,
) -> list[CallbackStep]:
    """Return those steps of a job or of an event that the topics still have, in the order of time.

    `wanted` is a job id or a webhook id. Without a `tenant`, the steps may belong to jobs of several tenants that have
    the same id. Consecutive waits become one step. Raises ProducerError.
    """
    names = settings.topics

    def steps(kept: Iterable[str], since_ms: int | None) -> Iterator[CallbackStep]:
        for record in scanner.read([each for topic in kept for each in scanner.ranges(topic, since_ms)]):
            if wanted in record.ids or _key(record) == wanted:
                step = read_step(record, settings)
                if step is not None and (tenant is None or step.tenant == tenant):
                    yield step

    found = list(steps((names.results, names.dead_letters, names.redriven), since_ms))
    tiers = (*names.tiers.values(), *names.former_tiers(scanner.topics()))
    found += steps((names.attempts, *tiers), _beginning(found, since_ms))
    return with_waits_as_one(sorted(found, key=lambda step: step.at_ms))


def _beginning(found: list[CallbackStep], since_ms: int | None) -> int | None:
    """Return the time from which to search for attempts and waits, which never precede the job's result.

    This limit saves time, because most of the records are attempts and waits. If the earliest step is not a result but
    a dead letter, an earlier result has been deleted. Then the search covers all records.
    """
    first = min(found, key=lambda step: step.at_ms, default=None)
    return since_ms if first is None or first.what != "settled" else max(first.at_ms, since_ms or 0)


def with_waits_as_one(steps: list[CallbackStep]) -> list[CallbackStep]:
    """Merge each event's consecutive waits into one step, with the first wait's time and the last wait's facts.

    Moves between tiers belong to the same wait. The step states the number of all deferrals without a try.
    """
    told: list[CallbackStep] = []
    waits: dict[tuple[str, str, str | None], int] = {}
    counted: dict[tuple[str, str, str | None], int] = {}
    for step in steps:
        if step.what != "waiting":
            waits.pop(step.whose, None)
            told.append(step)
            continue
        count, before = step.facts["deferred"], counted.get(step.whose, 0)
        counted[step.whose] = count
        deferred = count - before if count >= before else count  # after a redrive, deferrals are counted from 0 again
        at = waits.setdefault(step.whose, len(told))
        if at == len(told):
            told.append(replace(step, facts={**step.facts, "deferred": deferred}))
        else:
            told[at] = replace(told[at], facts={**step.facts, "deferred": told[at].facts["deferred"] + deferred})
    return told


def read_step(record: Stored, settings: KafkaSettings) -> CallbackStep | None:
    """Return the record's step; None if the record cannot be read as one."""
    names = settings.topics
    if record.topic == names.attempts:
        return _attempt(record, len(settings.tier_delays_seconds) + 1)
    if record.topic == names.results:
        return _made(record, "settled", _result_facts(record))
    if record.topic == names.dead_letters:
        facts = {name: record.header(header) for name, header in _LETTER_FACTS.items()}
        return _made(record, "dead_letter", {"id": str(record.place), **facts})
    if record.topic == names.redriven:
        return _made(record, "redriven", {"id": (record.key or b"").decode("latin-1")})
    return _made(record, "waiting", _waiting_facts(record))


_LETTER_FACTS = {"reason": topics.REASON, "detail": topics.REASON_DETAIL}
_ATTEMPT_FACTS = ("attempt", "status", "error", "duration_ms", "bytes", "origin", "answer")


def _made(record: Stored, what: What, facts: dict[str, Any]) -> CallbackStep:
    job_id = record.header(topics.JOB_ID) or _key(record)
    return CallbackStep(record.at_ms, what, record.tenant, job_id, record.header(topics.WEBHOOK_ID), facts)


def _attempt(record: Stored, most_attempts: int) -> CallbackStep | None:
    """Return the step of an attempt's record, or None if it is malformed. `most_attempts` is the limit for an event."""
    try:
        said = from_json(record.value or b"")
        identity = (str(said["tenant"]), str(said["job_id"]), str(said["webhook_id"]))
        facts = {name: said.get(name) for name in _ATTEMPT_FACTS}
        return CallbackStep(int(said["at"]), "attempt", *identity, {**facts, "most_attempts": most_attempts})
    except (ValueError, KeyError, TypeError, OverflowError):
        return None  # the fleet did not write this record


def _result_facts(record: Stored) -> dict[str, Any]:
    url = record.header(topics.CALLBACK_URL)
    facts: dict[str, Any] = {"place": str(record.place), "origin": origin_of(url) if url else None}
    try:
        return {"outcome": read_result(record.value).outcome.value, **facts}
    except InvalidResult:
        return {"outcome": None, **facts}


def _waiting_facts(record: Stored) -> dict[str, Any]:
    due, deferred = (record.number(name) for name in (topics.NOT_BEFORE, topics.DEFERRED))
    return {
        "topic": record.topic,
        "until": show_time(due) if due is not None else None,
        "attempts": record.header(topics.ATTEMPT),
        "deferred": deferred or 0,
        "reason": record.header(topics.DEFERRED_REASON),
        "last": show_time(record.at_ms),
    }


def _key(record: Stored) -> str:
    return (record.key or b"").decode("utf-8", "replace")
