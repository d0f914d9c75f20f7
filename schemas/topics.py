"""Topics and headers: their names, and how each topic is laid out."""

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
"""Where a job first stood, as `topic UUID:partition:offset`: on a job that a worker moved, and on a job's dead letter.
Readers believe it, and `webhook-id` with it, only where the `webhook-id` is derived from both this place and the value
(`schemas.codec.Origin.webhook_id`)."""
SAID_TENANT = "said-tenant"
SAID_JOB_ID = "said-job-id"
"""On a dead letter: what its record said where it was not believed. A redrive makes it what the record says again."""
CALLBACK_URL = "callback-url"
ATTEMPT = "attempt"
"""Callback attempts that were made before this record was written, decimal."""
NOT_BEFORE = "not-before"
"""Unix milliseconds, decimal: the real time at which the next attempt is due."""
LEFT = "left"
"""Milliseconds of that wait that are left from when this record was written, decimal: right where a clock is not."""
WAITED = "waited"
"""Milliseconds that a callback has been told to wait so far, in all tiers together, decimal."""
WRITTEN = "written"
"""Unix milliseconds, decimal: when a callback was put into its tier, by the clock of the process that did it."""
RESULT_AT = "result-at"
"""Unix milliseconds, decimal: when the result of a callback that waits was written, or was put back."""
REASON = "reason"
"""Why a record is in `dead_letters`, as a stable code."""
REASON_DETAIL = "reason-detail"
SOURCE_TOPIC = "source-topic"
SOURCE_PARTITION = "source-partition"
SOURCE_OFFSET = "source-offset"
ABRIDGED = "abridged"
"""On a dead letter whose record was too large to be one: it stands whole at its source."""
ATTEMPTS = "attempts"
DEFERRED = "deferred"
"""How often a record was settled into a later place without being tried, decimal."""
FORWARDED = "forwarded"
"""How often a job went on to another engine's lane, decimal."""

WAITING_HEADERS = (ATTEMPT, NOT_BEFORE, LEFT, DEFERRED, WAITED, WRITTEN, RESULT_AT)
"""What is said of a callback only while it waits: one that is given up, or begins anew, has none of them."""

TIER_DELAYS_SECONDS: tuple[float, ...] = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
"""Waits between callback attempts; after the last one fails too, the callback is dead-lettered."""
BETWEEN_SECONDS = (30, 120)
"""What a callback waits that is not between two attempts: mostly one whose origin is left alone, where it has longer to
wait. Five seconds and five minutes are far apart, and what comes round is written anew each time."""

_DAY_MS = 24 * 3600 * 1000
LANES_KEPT_MS = 7 * _DAY_MS
"""How long a lane keeps a job, read or not."""
TOMBSTONES_KEPT_MS = _DAY_MS
"""How long a compacted topic shows at least that something was taken back: who did not read on for so long has to begin
anew."""
LETTERS_KEPT_MS = 30 * _DAY_MS
"""How long a dead letter can be put back. It stands there for some days more, until its segment is dropped."""
_MARKS_KEPT_MS = 45 * _DAY_MS
"""How long it is kept that a dead letter was put back: longer than any letter, whatever the size of the segments."""
_TIER = re.compile(r"([1-9][0-9]{0,8})(ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


_LANE = re.compile(r"(?!(?:batch|shadow)$)[A-Za-z0-9_-]{1,64}")


def is_engine_lane(name: str) -> bool:
    """Whether an engine's lanes may have this name: `batch` and `shadow` would be other topics of the fleet."""
    return _LANE.fullmatch(name) is not None


def tier_name(delay_seconds: float) -> str:
    """The delay as it stands in a topic's name: 5s, 5m, 2h; fractions, which tests use, as milliseconds."""
    if delay_seconds != int(delay_seconds):
        return f"{round(delay_seconds * 1000)}ms"
    seconds = int(delay_seconds)
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def tiers_of(delays_seconds: Iterable[float]) -> tuple[float, ...]:
    """How long the tiers are of a schedule with these waits, shortest first: each wait's, and those between."""
    delays = set(delays_seconds)
    between = {seconds for seconds in BETWEEN_SECONDS if min(delays) < seconds < max(delays)}
    return tuple(sorted(delays | between))


def tier_delay(name: str) -> float | None:
    """The other way round, seconds; None for what is not such a name."""
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
    """The names of a fleet's topics. `prefix` goes before each, so that fleets can share brokers."""

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
        """One record per job, then read by delivery and by whoever wants results without webhooks."""
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
        # Deleted by age alone, whatever the brokers' own defaults are.
        kept = {"cleanup.policy": "delete", "retention.bytes": "-1", "max.message.bytes": str(1024 * 1024)}
        week = {**kept, "retention.ms": str(7 * _DAY_MS)}
        # What the fleet's processes write is stamped by the broker: from a machine whose clock is an hour ahead it
        # would refuse whole transactions, and a tier is a queue only where one clock says when its records came.
        stamped = {**week, "message.timestamp.type": "LogAppendTime"}
        month = {**stamped, "retention.ms": str(30 * _DAY_MS)}
        day = {**stamped, "retention.ms": str(_DAY_MS)}
        letters = {**stamped, "retention.ms": str(LETTERS_KEPT_MS)}
        marks = {**stamped, "retention.ms": str(_MARKS_KEPT_MS)}
        # What was superseded goes within a day or so; without these it could stay until there is a gigabyte of it.
        followed = {
            "delete.retention.ms": str(TOMBSTONES_KEPT_MS),
            "max.compaction.lag.ms": str(_DAY_MS),
            "segment.bytes": str(16 * 1024 * 1024),
        }
        compacted = {**followed, "cleanup.policy": "compact", "max.message.bytes": str(1024 * 1024)}
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
