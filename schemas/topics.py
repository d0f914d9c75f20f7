"""Names of topics and headers, and the layout of each topic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

TENANT = "tenant"
DEADLINE = "deadline"
"""Unix milliseconds, decimal."""
PRIORITY = "priority"
IDEMPOTENCY_KEY = "idempotency-key"
TRACEPARENT = "traceparent"
SCHEMA = "schema"
JOB_ID = "job-id"
"""Stamped when a record leaves the topic where it got its identity, and carried from then on."""
WEBHOOK_ID = "webhook-id"
JOB_ORIGIN = "job-origin"
"""A job's first place, as `topic UUID:partition:offset`: on a job that a worker moved, and on a job's dead letter.
Readers believe it, and `webhook-id` with it, only where the `webhook-id` is derived from both this place and the value
(`schemas.codec.Origin.webhook_id`)."""
SAID_TENANT = "said-tenant"
SAID_JOB_ID = "said-job-id"
"""On a dead letter: the record's own value where it was rejected. A redrive restores it to the record."""
CALLBACK_URL = "callback-url"
ATTEMPT = "attempt"
"""Callback attempts that were made before this record was written, decimal."""
NOT_BEFORE = "not-before"
"""Unix milliseconds, decimal: the real time at which the next attempt is due."""
LEFT = "left"
"""Milliseconds of that wait left when this record was written, decimal; independent of clocks that are wrong."""
WAITED = "waited"
"""Milliseconds of a callback's waits so far, in all tiers together, decimal."""
WRITTEN = "written"
"""Unix milliseconds, decimal: the time of the write into the tier, by the writer's clock."""
RESULT_AT = "result-at"
"""Unix milliseconds, decimal: the time at which a waiting callback's result was written, or put back."""
REASON = "reason"
"""The reason of a dead letter, as a stable code."""
REASON_DETAIL = "reason-detail"
SOURCE_TOPIC = "source-topic"
SOURCE_PARTITION = "source-partition"
SOURCE_OFFSET = "source-offset"
ABRIDGED = "abridged"
"""On a dead letter that is abridged: the record was too large, and its source still holds all of it."""
ATTEMPTS = "attempts"
DEFERRED = "deferred"
"""Number of times a record was settled into a later place without a try, decimal."""
DEFERRED_REASON = "deferred-reason"
"""The reason of a callback's last deferral, as a stable code."""
FORWARDED = "forwarded"
"""Number of moves of a job to another engine's lane, decimal."""

WAITING_HEADERS = (ATTEMPT, NOT_BEFORE, LEFT, DEFERRED, DEFERRED_REASON, WAITED, WRITTEN, RESULT_AT)
"""Headers of a waiting callback alone: one that is given up, or begins anew, loses them."""

TIER_DELAYS_SECONDS: tuple[float, ...] = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
"""Waits between callback attempts; after the last one fails too, the callback is dead-lettered."""
BETWEEN_SECONDS = (30, 120)
"""Waits for other causes than a failed attempt, mostly while a callback's origin is left alone. They fill the gap
between five seconds and five minutes: each return writes the record anew."""

_DAY_MS = 24 * 3600 * 1000
LANES_KEPT_MS = 7 * _DAY_MS
"""Retention of a job in a lane, read or unread."""
TOMBSTONES_KEPT_MS = _DAY_MS
"""Shortest life of a tombstone in a compacted topic: a reader that paused for longer has to begin anew."""
LETTERS_KEPT_MS = 30 * _DAY_MS
"""Time within which a dead letter can be put back. Its segment is dropped some days later."""
_MARKS_KEPT_MS = 45 * _DAY_MS
"""Retention of the mark that a dead letter was put back: longer than any letter, for any size of segments."""
_TAKEN_IN = {"compression.type": "lz4", "max.message.bytes": str(1024 * 1024)}
"""How a broker takes batches into each topic. It believes the offsets that the records of an uncompressed batch state,
unless it has to compress the batch itself (Kafka's `LogValidator`). librdkafka believes them too: it reads on behind a
record that states a higher offset, past the records of others."""
_TIER = re.compile(r"([1-9][0-9]{0,8})(ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


_LANE = re.compile(r"(?!(?:batch|shadow)$)[A-Za-z0-9_-]{1,64}")


def is_engine_lane(name: str) -> bool:
    """True if an engine's lanes may have this name; `batch` and `shadow` would be other topics of the fleet."""
    return _LANE.fullmatch(name) is not None


def tier_name(delay_seconds: float) -> str:
    """The delay in a topic's name: 5s, 5m, 2h; fractions, which tests use, as milliseconds."""
    if delay_seconds != int(delay_seconds):
        return f"{round(delay_seconds * 1000)}ms"
    seconds = int(delay_seconds)
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def tiers_of(delays_seconds: Iterable[float]) -> tuple[float, ...]:
    """The tiers of a schedule with these waits, in seconds, shortest first: the waits themselves, and those between."""
    delays = set(delays_seconds)
    between = {seconds for seconds in BETWEEN_SECONDS if min(delays) < seconds < max(delays)}
    return tuple(sorted(delays | between))


def tier_delay(name: str) -> float | None:
    """The reverse, in seconds; None for any other name."""
    found = _TIER.fullmatch(name)
    return int(found[1]) * _UNIT_SECONDS[found[2]] if found else None


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as `postback topics create` makes it."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of a fleet's topics. `prefix` precedes each, so that fleets can share brokers."""

    prefix: str = ""
    tier_delays_seconds: tuple[float, ...] = TIER_DELAYS_SECONDS

    def requests(self, engine: str | None = None, *, bulk: bool = False) -> str:
        """The lane that jobs enter: of the whole fleet, or of one engine; default or bulk."""
        parts = ["model_requests", *([engine] if engine else []), *(["batch"] if bulk else [])]
        return self.prefix + ".".join(parts)

    def lanes(self, existing: Iterable[str]) -> list[str]:
        """The lanes among these topics, of the whole fleet and of its engines, default before bulk."""
        start, found = self.requests(), []
        for name in sorted(existing):
            engine = name.removeprefix(start).removesuffix(".batch")
            if name.startswith(start) and (not engine or (engine[0] == "." and is_engine_lane(engine[1:]))):
                found.append(name)
        return found

    @property
    def results(self) -> str:
        """One record per job, for delivery and for readers of results without webhooks."""
        return f"{self.prefix}model_results"

    @property
    def attempts(self) -> str:
        """One record per POST."""
        return f"{self.prefix}callback_attempts"

    @property
    def endpoints(self) -> str:
        """Compacted: which endpoints are disabled."""
        return f"{self.prefix}callback_endpoints"

    @property
    def control(self) -> str:
        """Compacted by tenant and job: cancellations. Kept as long as a dead letter, whose job may be cancelled."""
        return f"{self.prefix}job_control"

    @property
    def workers(self) -> str:
        """Compacted by replica: which models each worker answers for."""
        return f"{self.prefix}fleet_workers"

    @property
    def dead_letters(self) -> str:
        """Jobs and callbacks that were given up, with the reason in their headers."""
        return f"{self.prefix}dead_letters"

    @property
    def redriven(self) -> str:
        """Which dead letters were put back, keyed by their place, so that none is put back twice."""
        return f"{self.prefix}dead_letters.redriven"

    @property
    def batch_requests(self) -> str:
        """Batches to be expanded into jobs."""
        return f"{self.prefix}batch_requests"

    @property
    def shadow(self) -> str:
        """Samples that a candidate model answers again."""
        return f"{self.prefix}model_requests.shadow"

    def tier(self, delay_seconds: float) -> str:
        """The topic in which a callback waits this long."""
        return f"{self.prefix}callback_retries.{tier_name(delay_seconds)}"

    @property
    def tiers(self) -> dict[float, str]:
        """Delay in seconds to topic, shortest first."""
        return {delay: self.tier(delay) for delay in tiers_of(self.tier_delays_seconds)}

    def former_tiers(self, existing: Iterable[str]) -> dict[str, float]:
        """Topic to delay in seconds, of the tiers among these topics that the schedule has no more."""
        start, current = f"{self.prefix}callback_retries.", set(self.tiers.values())
        found = {name: tier_delay(name.removeprefix(start)) for name in existing if name.startswith(start)}
        return {name: delay for name, delay in found.items() if delay is not None and name not in current}

    def specs(self, partitions: int, engines: tuple[str, ...] = ()) -> list[TopicSpec]:
        """Every topic of the fleet. `model_results` has as many partitions as `model_requests` (DESIGN: settle)."""
        # Records are deleted by age alone, whatever the brokers' defaults are.
        kept = {"cleanup.policy": "delete", "retention.bytes": "-1", **_TAKEN_IN}
        week = {**kept, "retention.ms": str(7 * _DAY_MS)}
        # The broker stamps the records of the fleet's processes: it would refuse whole transactions of a machine whose
        # clock is an hour ahead, and a tier is a queue only by one clock.
        stamped = {**week, "message.timestamp.type": "LogAppendTime"}
        month = {**stamped, "retention.ms": str(30 * _DAY_MS)}
        day = {**stamped, "retention.ms": str(_DAY_MS)}
        letters = {**stamped, "retention.ms": str(LETTERS_KEPT_MS)}
        marks = {**stamped, "retention.ms": str(_MARKS_KEPT_MS)}
        # Superseded records go within a day or so; without these they could stay up to a gigabyte.
        followed = {
            "delete.retention.ms": str(TOMBSTONES_KEPT_MS),
            "max.compaction.lag.ms": str(_DAY_MS),
            "segment.bytes": str(16 * 1024 * 1024),
        }
        compacted = {**followed, "cleanup.policy": "compact", **_TAKEN_IN}
        lane = {**kept, "retention.ms": str(LANES_KEPT_MS)}
        lanes = [self.requests(engine, bulk=bulk) for engine in (None, *engines) for bulk in (False, True)]
        return [
            *(TopicSpec(name, partitions, lane) for name in (*lanes, self.batch_requests, self.shadow)),
            *(TopicSpec(name, partitions, stamped) for name in (self.results, *self.tiers.values(), self.attempts)),
            TopicSpec(self.dead_letters, partitions, letters),
            TopicSpec(self.redriven, 1, marks),
            TopicSpec(self.endpoints, 1, compacted),
            # As long as a dead letter: a redrive looks up which jobs were cancelled. Workers read the last days only.
            TopicSpec(self.control, 1, {**month, **followed, "cleanup.policy": "compact,delete"}),
            TopicSpec(self.workers, 1, {**day, **followed, "cleanup.policy": "compact,delete"}),
        ]
