"""Names of topics and headers, and the layout of each topic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

TENANT = "tenant"
DEADLINE = "deadline"
"""The time at which the job expires, Unix milliseconds, decimal."""
PRIORITY = "priority"
IDEMPOTENCY_KEY = "idempotency-key"
TRACEPARENT = "traceparent"
TRACEPARENT_FORMAT = re.compile(
    r"(?!ff)(?!00-.{52}-)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
    r"(-[\x20-\x7e]{0,256})?"
)
"""W3C Trace Context, section 3.2.2.3, with the groups trace id, parent id and flags. A value of another form restarts
the trace."""
SCHEMA = "schema"
JOB_ID = "job-id"
"""The job's identifier. Workers add it when they first move the job or write its result, and never remove it."""
WEBHOOK_ID = "webhook-id"
IDENTIFYING = frozenset({TENANT, JOB_ID, WEBHOOK_ID})
"""The headers that say whose record it is; a dead letter's abridged form and its mark of a redrive keep them."""
JOB_ORIGIN = "job-origin"
"""A job's first place, as `topic UUID:partition:offset`. A job that a worker moved has this header, and so has a job's
dead letter. Readers trust this header and `webhook-id` only if the `webhook-id` is derived from this place and the
value (`schemas.codec.Origin.webhook_id`)."""
TENANT_SIGNATURE = "tenant-signature"
"""The fleet's signature over tenant, job id and value (`schemas.trust`). The signature stays valid wherever the job is
moved.
"""
SAID_TENANT = "said-tenant"
SAID_JOB_ID = "said-job-id"
"""On a dead letter: the `tenant` and the `job-id` that the rejected record itself stated. A redrive restores these
headers."""
SCREENING = "screening"
"""On a job: the findings of the gateway's input filter, as a JSON list (`schemas.screening`). The job's result has them
beside those of the worker's own filter."""
DELTAS = "deltas"
"""On a job: `1` if a client waits for its answer piece by piece. Only the gateway writes this header, and workers read
it. On another producer's job it has no effect, since nothing listens to the pieces."""
CALLBACK_URL = "callback-url"
WEBHOOK_ENDPOINT = "webhook-endpoint"
"""On an event of `callback_events`: the id of the tenant's webhook endpoint. The record's value is sent as it
stands."""
WEBHOOK_ENDPOINT_VERSIONS = "webhook-endpoint-versions"
"""Versions of the endpoint's secret that sign the event, newest first, separated by commas."""
WEBHOOK_HTTP_HEADER = "webhook-http-header"
"""An HTTP header of the endpoint's own, as `name: value`; may occur several times."""
WEBHOOK_RATE_LIMIT = "webhook-rate-limit"
"""The most callbacks a second that the endpoint takes, decimal; absent without a limit."""
ATTEMPT = "attempt"
"""The number of callback attempts made before this record was written, decimal."""
NOT_BEFORE = "not-before"
"""The time at which the next attempt is due, Unix milliseconds, decimal."""
LEFT = "left"
"""Milliseconds until the next attempt when this record was written, decimal; right even if clocks are wrong."""
WAITED = "waited"
"""Milliseconds that a callback has waited so far in all tiers, decimal."""
WRITTEN = "written"
"""The time at which the record was written into the tier, by the writer's clock, Unix milliseconds, decimal."""
RESULT_AT = "result-at"
"""The time at which a waiting callback's result was written or put back, Unix milliseconds, decimal."""
REASON = "reason"
"""The reason of a dead letter, as a stable code."""
REASON_DETAIL = "reason-detail"
SOURCE_TOPIC = "source-topic"
SOURCE_PARTITION = "source-partition"
SOURCE_OFFSET = "source-offset"
ABRIDGED = "abridged"
"""On an abridged dead letter: the record was too large, and only the source topic has the whole record."""
ATTEMPTS = "attempts"
DEFERRED = "deferred"
"""Number of times that a record was moved to a later place without an attempt, decimal."""
DEFERRED_REASON = "deferred-reason"
"""The reason of a callback's last deferral, as a stable code."""
FORWARDED = "forwarded"
"""Number of moves of a job to another engine's lane, decimal."""

LANE = "lane"
"""On a job that waits for its `not_before`: the lane to which it returns."""

WAITING_HEADERS = (ATTEMPT, NOT_BEFORE, LEFT, DEFERRED, DEFERRED_REASON, WAITED, WRITTEN, RESULT_AT)
"""Headers of waiting callbacks only: a callback that is given up, or starts again, loses them."""

TIER_DELAYS_SECONDS: tuple[float, ...] = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
"""Waits between callback attempts, in seconds. If the attempt after the last wait fails too, the callback becomes a
dead letter."""
BETWEEN_SECONDS = (30, 120)
"""Waits in seconds for other causes than a failed attempt, mostly while a callback's origin gets no calls. These waits
fill the gap between five seconds and five minutes. Each return from a tier rewrites the record, so repeated waits of
five seconds would rewrite it often."""

LATER_SECONDS = (5, 30, 300, 3600, 21600)
"""Lengths of the tiers in which jobs wait for their `not_before`. A job starts up to five seconds late, the length of
the shortest one. The longest wait, of six days, rewrites a job some fifty times."""

_DAY_MS = 24 * 3600 * 1000
LANES_KEPT_MS = 7 * _DAY_MS
"""Retention of a job in a lane, read or unread."""
TOMBSTONES_KEPT_MS = _DAY_MS
"""Shortest life of a tombstone in a compacted topic. A reader that paused for longer must start from the beginning."""
LETTERS_KEPT_MS = 30 * _DAY_MS
"""Time for which a dead letter can be put back. Kafka deletes the letter's segment some days later."""
_MARKS_KEPT_MS = 45 * _DAY_MS
"""Retention of the mark that a dead letter was put back. A mark outlives its letter, however large the segments are."""
_TAKEN_IN = {"compression.type": "lz4", "max.message.bytes": str(1024 * 1024)}
"""Settings for the batches of each topic. A broker trusts the offsets that the records of an uncompressed batch state,
unless it has to compress the batch itself (Kafka's `LogValidator`). So `lz4` makes the broker compress such batches.
librdkafka would trust wrong offsets too: after a record that states too high an offset, it continues from that offset
and skips other producers' records."""
_TIER = re.compile(r"([1-9][0-9]{0,8})(ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


Lane = Literal["default", "bulk", "spare"]
"""Jobs of `bulk` may wait behind those of `default`. Jobs of `spare` run only while no other job waits."""

_LANE = re.compile(r"(?!(?:batch|shadow|spare)$)[A-Za-z0-9_-]{1,64}")


def is_engine_lane(name: str) -> bool:
    """True if an engine's lanes may have this name. `batch`, `shadow` and `spare` name other topics."""
    return _LANE.fullmatch(name) is not None


def tier_name(delay_seconds: float) -> str:
    """Return the delay as in a topic's name: 5s, 5m, 2h. Fractions, which tests use, are in milliseconds."""
    if delay_seconds != int(delay_seconds):
        return f"{round(delay_seconds * 1000)}ms"
    seconds = int(delay_seconds)
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def tiers_of(delays_seconds: Iterable[float]) -> tuple[float, ...]:
    """Return a schedule's tiers in seconds, shortest first: its waits, and the BETWEEN_SECONDS within their range."""
    delays = set(delays_seconds)
    between = {seconds for seconds in BETWEEN_SECONDS if min(delays) < seconds < max(delays)}
    return tuple(sorted(delays | between))


def hop(left_ms: int, tiers: tuple[float, ...]) -> float:
    """Return the largest tier that fits the time left, else the smallest. `tiers` are seconds, shortest first."""
    fitting = [tier for tier in tiers if 1000 * tier <= left_ms]
    return fitting[-1] if fitting else tiers[0]


def tier_delay(name: str) -> float | None:
    """Return the seconds of a tier's name; None for any other name."""
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
    """The names of a fleet's topics. `prefix` precedes each name, so that fleets can share brokers."""

    prefix: str = ""
    tier_delays_seconds: tuple[float, ...] = TIER_DELAYS_SECONDS

    def requests(self, engine: str | None = None, *, bulk: bool = False, spare: bool = False) -> str:
        """The lane that jobs enter: the whole fleet's or one engine's, default, bulk or spare."""
        parts = ["model_requests", *([engine] if engine else []), *(["batch"] if bulk else ["spare"] if spare else [])]
        return self.prefix + ".".join(parts)

    def lane(self, name: Lane) -> str:
        """The whole fleet's lane of this name."""
        return self.requests(bulk=name == "bulk", spare=name == "spare")

    def requests_of(self, engine: str | None) -> list[str]:
        """The lanes of the whole fleet, or of one engine: default, bulk, spare."""
        return [self.requests(engine), self.requests(engine, bulk=True), self.requests(engine, spare=True)]

    def lanes(self, existing: Iterable[str]) -> list[str]:
        """Return the lanes among these topics, of the whole fleet and of its engines, default before bulk."""
        start, found = self.requests(), []
        for name in sorted(existing):
            engine = name.removeprefix(start).removesuffix(".batch").removesuffix(".spare")
            if name.startswith(start) and (not engine or (engine[0] == "." and is_engine_lane(engine[1:]))):
                found.append(name)
        return found

    def class_of(self, lane: str) -> str:
        """Return the class of one of `lanes`: default, bulk or spare."""
        return "bulk" if lane.endswith(".batch") else "spare" if lane.endswith(".spare") else "default"

    def engine_of(self, lane: str) -> str | None:
        """Return the engine of one of `lanes`; None for the lanes of the whole fleet."""
        return (
            lane.removeprefix(self.requests()).removesuffix(".batch").removesuffix(".spare").removeprefix(".") or None
        )

    @property
    def results(self) -> str:
        """One record per job, for delivery and for clients that read results without a callback."""
        return f"{self.prefix}model_results"

    @property
    def events(self) -> str:
        """Events for tenants' webhook endpoints, ready to be sent."""
        return f"{self.prefix}callback_events"

    @property
    def attempts(self) -> str:
        """One record per POST to a callback's URL."""
        return f"{self.prefix}callback_attempts"

    @property
    def endpoints(self) -> str:
        """The disabled endpoints; compacted."""
        return f"{self.prefix}callback_endpoints"

    @property
    def control(self) -> str:
        """Cancellations, compacted by tenant and job.

        Kept as long as dead letters, because a redrive looks up cancelled jobs.
        """
        return f"{self.prefix}job_control"

    @property
    def workers(self) -> str:
        """The models that each worker answers for, compacted by replica."""
        return f"{self.prefix}fleet_workers"

    @property
    def dead_letters(self) -> str:
        """Jobs and callbacks that were given up, with the reason in their headers."""
        return f"{self.prefix}dead_letters"

    @property
    def redriven(self) -> str:
        """Marks of dead letters that were put back, keyed by the letter's place. No letter is put back twice."""
        return f"{self.prefix}dead_letters.redriven"

    @property
    def batch_requests(self) -> str:
        """Batches to be expanded into jobs."""
        return f"{self.prefix}batch_requests"

    @property
    def shadow(self) -> str:
        """Copies of sampled jobs, which a candidate model answers again."""
        return f"{self.prefix}model_requests.shadow"

    @property
    def rollouts(self) -> str:
        """Rollouts of candidate models, and the steps that they have reached; compacted."""
        return f"{self.prefix}model_rollouts"

    @property
    def comparisons(self) -> str:
        """Observations of a rollout's jobs. The topic's one partition gives all readers the same order."""
        return f"{self.prefix}model_rollouts.comparisons"

    def tier(self, delay_seconds: float) -> str:
        """The topic in which callbacks wait for this delay."""
        return f"{self.prefix}callback_retries.{tier_name(delay_seconds)}"

    @property
    def tiers(self) -> dict[float, str]:
        """Topics by delay in seconds, shortest first."""
        return {delay: self.tier(delay) for delay in tiers_of(self.tier_delays_seconds)}

    @property
    def later(self) -> dict[float, str]:
        """The tiers of jobs that start later: topics by delay in seconds, shortest first."""
        return {delay: f"{self.requests()}.later.{tier_name(delay)}" for delay in LATER_SECONDS}

    def former_tiers(self, existing: Iterable[str]) -> dict[str, float]:
        """Map those `existing` topics that are tiers, but no longer of the schedule, to their delays in seconds."""
        start, current = f"{self.prefix}callback_retries.", set(self.tiers.values())
        found = {name: tier_delay(name.removeprefix(start)) for name in existing if name.startswith(start)}
        return {name: delay for name, delay in found.items() if delay is not None and name not in current}

    def specs(self, partitions: int, engines: tuple[str, ...] = ()) -> list[TopicSpec]:
        """Every topic of the fleet. `model_results` has as many partitions as `model_requests`."""
        # Records are removed by age alone, whatever the brokers' defaults are.
        kept = {"cleanup.policy": "delete", "retention.bytes": "-1", **_TAKEN_IN}
        week = {**kept, "retention.ms": str(7 * _DAY_MS)}
        # The broker sets these timestamps. With the writers' timestamps, the broker would refuse whole transactions of
        # a machine whose clock is an hour ahead, and several clocks would order the records of a tier.
        stamped = {**week, "message.timestamp.type": "LogAppendTime"}
        month = {**stamped, "retention.ms": str(30 * _DAY_MS)}
        day = {**stamped, "retention.ms": str(_DAY_MS)}
        letters = {**stamped, "retention.ms": str(LETTERS_KEPT_MS)}
        marks = {**stamped, "retention.ms": str(_MARKS_KEPT_MS)}
        # With these properties, Kafka removes superseded records within about a day. With Kafka's defaults, superseded
        # records could take up to a gigabyte.
        followed = {
            "delete.retention.ms": str(TOMBSTONES_KEPT_MS),
            "max.compaction.lag.ms": str(_DAY_MS),
            "segment.bytes": str(16 * 1024 * 1024),
        }
        compacted = {**followed, "cleanup.policy": "compact", **_TAKEN_IN}
        lane = {**kept, "retention.ms": str(LANES_KEPT_MS)}
        lanes = [lane for engine in (None, *engines) for lane in self.requests_of(engine)]
        return [
            *(TopicSpec(name, partitions, lane) for name in (*lanes, self.batch_requests, self.shadow)),
            *(TopicSpec(name, partitions, stamped) for name in (self.results, self.events)),
            *(TopicSpec(name, partitions, stamped) for name in (*self.tiers.values(), self.attempts)),
            *(TopicSpec(name, partitions, stamped) for name in self.later.values()),
            TopicSpec(self.dead_letters, partitions, letters),
            TopicSpec(self.redriven, 1, marks),
            *(TopicSpec(name, 1, compacted) for name in (self.endpoints, self.rollouts)),
            TopicSpec(self.comparisons, 1, month),
            # Cancellations are kept as long as dead letters, because a redrive looks up cancelled jobs. Workers read
            # only the last days.
            TopicSpec(self.control, 1, {**month, **followed, "cleanup.policy": "compact,delete"}),
            TopicSpec(self.workers, 1, {**day, **followed, "cleanup.policy": "compact,delete"}),
        ]
