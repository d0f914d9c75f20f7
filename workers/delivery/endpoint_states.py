"""Which endpoints are disabled, and which are on the way there. An endpoint here is a (tenant, full URL).

The fleet shares this through the compacted topic `callback_endpoints`:

    (nothing known) ── its attempts fail for minutes ───► failing   since when stands in the record
    failing ─────────── an attempt succeeds, anywhere ──► (nothing known): a tombstone
    failing ─────────── it has failed for days ─────────► disabled
    any ─────────────── it answers 410 ─────────────────► disabled
    any ─────────────── `postback endpoints …` ─────────► disabled, or enabled

"Failing" is shared so that days can be counted over restarts, and so that a success that another process sees takes it
back. What this process decides it writes down with the attempt, in one transaction; it is known here, as everywhere,
when it is read back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from schemas.endpoint import (
    DisabledBecause,
    EndpointKey,
    EndpointRecord,
    InvalidEndpointRecord,
    State,
    read_endpoint,
    read_key,
)
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.delivery.outputs import PendingDelivery
from workers.delivery.post import Delivered, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings

_FAILURES = 3
"""Fewer failures in a row are no sign: with little traffic, one would count for the days since the last success."""
_FAILING_MS = 300_000
"""How long they have to go on until the fleet is told; most outages are shorter, and write nothing."""
_STREAKS = 10_000
"""Endpoints whose failures are counted; beyond that the one that failed longest ago is forgotten."""
_SAID_MS = 60_000
"""So long a decision may take to be read back: it is logged and counted once meanwhile, whatever meets it."""

log = get_logger()


@dataclass(slots=True)
class _Streak:
    """Failures in a row that this process has seen."""

    since_ms: int
    count: int = 0


@dataclass(frozen=True, slots=True)
class Forget:
    """A tombstone is to be written for this endpoint."""

    key: EndpointKey


Change = EndpointRecord | Forget


class EndpointStates:
    """What is known of endpoints. Belongs to the event loop."""

    def __init__(self, settings: DeliverySettings, metrics: Metrics) -> None:
        self._disable_after_ms = round(1000 * settings.disable_after_seconds)
        self._metrics = metrics
        self._disabled: set[EndpointKey] = set()
        self._failing: dict[EndpointKey, int] = {}
        """Since when, Unix milliseconds."""
        self._streaks: OrderedDict[EndpointKey, _Streak] = OrderedDict()
        self._said: dict[EndpointKey, int] = {}

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in a record of the topic."""
        try:
            endpoint = read_key(key)
            record = read_endpoint(value) if value is not None else None
        except InvalidEndpointRecord as error:
            log.warning("An endpoint's record is unreadable.", action="endpoint-record-unreadable", detail=str(error))
            return
        self._said.pop(endpoint, None)
        self._failing.pop(endpoint, None)
        self._disabled.discard(endpoint)
        if record is not None and record.state is State.DISABLED:
            self._disabled.add(endpoint)
        elif record is not None and record.state is State.FAILING:
            self._failing[endpoint] = record.at
        else:
            self._streaks.pop(endpoint, None)
        self._metrics.disabled_endpoints.set(len(self._disabled))

    def is_disabled(self, endpoint: EndpointKey) -> bool:
        """Whether nothing is to be sent there."""
        return endpoint in self._disabled

    def learn(self, pending: PendingDelivery, outcome: PostOutcome, now_ms: int) -> Change | None:
        """What an attempt changes in the topic, if anything."""
        endpoint = pending.tenant, pending.url
        if endpoint in self._disabled:
            return None  # the attempt was on its way already, and what it shows must not undo that
        if isinstance(outcome, Delivered):
            self._streaks.pop(endpoint, None)
            return Forget(endpoint) if endpoint in self._failing else None
        if outcome.reason is FailureReason.REFUSED:
            return None  # our own rule; the endpoint was not asked
        if outcome.reason is FailureReason.GONE:
            return self._disable(pending, DisabledBecause.GONE, now_ms)
        return self._learn_failure(pending, endpoint, now_ms)

    def _learn_failure(self, pending: PendingDelivery, endpoint: EndpointKey, now_ms: int) -> Change | None:
        streak = self._count(endpoint, now_ms)
        if streak.count < _FAILURES:
            return None
        since_ms = self._failing.get(endpoint)
        if since_ms is not None:
            failed_long = now_ms - since_ms >= self._disable_after_ms
            return self._disable(pending, DisabledBecause.FAILING, now_ms) if failed_long else None
        if now_ms - streak.since_ms < min(_FAILING_MS, self._disable_after_ms):
            return None
        # Since now, not since the first failure: this process does not know of the successes that others have seen.
        streak.since_ms = now_ms
        return EndpointRecord(
            tenant=pending.tenant, url=pending.url, state=State.FAILING, at=now_ms, webhook_id=pending.webhook_id
        )

    def _count(self, endpoint: EndpointKey, now_ms: int) -> _Streak:
        streak = self._streaks.setdefault(endpoint, _Streak(now_ms))
        self._streaks.move_to_end(endpoint)
        if len(self._streaks) > _STREAKS:
            self._streaks.popitem(last=False)
        streak.count += 1
        return streak

    def _disable(self, pending: PendingDelivery, reason: DisabledBecause, now_ms: int) -> EndpointRecord:
        endpoint = pending.tenant, pending.url
        if now_ms - self._said.get(endpoint, -_SAID_MS) >= _SAID_MS:
            self._said[endpoint] = now_ms
            self._metrics.endpoints_disabled.labels(str(reason)).inc()
            log.warning(
                "An endpoint is disabled; its events are kept as dead letters.",
                action="inference.endpoint.disabled",
                reason=str(reason),
                tenant=pending.tenant,
                origin=pending.origin,
                job_id=pending.job_id,
                webhook_id=pending.webhook_id,
            )
        return EndpointRecord(
            tenant=pending.tenant,
            url=pending.url,
            state=State.DISABLED,
            at=now_ms,
            reason=reason,
            webhook_id=pending.webhook_id,
        )
