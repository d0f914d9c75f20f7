"""The disabled endpoints, and the failing ones on the way there. An endpoint here is a (tenant, full URL).

The fleet shares their states through the compacted topic `callback_endpoints`:

    (unknown) ───────── attempts of several events fail for minutes ─► failing   since the record's time
    failing ─────────── an attempt succeeds, in any process ─────────► (unknown): a tombstone
    failing ─────────── it has failed for days ──────────────────────► disabled
    any ─────────────── it answers 410 ──────────────────────────────► disabled
    any ─────────────── `postback endpoints …` ──────────────────────► disabled, or enabled
    failing, enabled ── no change for days ──────────────────────────► (unknown): a tombstone

"Failing" is shared so that days are counted over restarts, and so that another process's success ends it. A process
writes its decision with the attempt, in one transaction, and applies it when the record is read back, as all others do.
Meanwhile an operator or another process may have disabled the endpoint. So neither a tombstone nor "failing" enables an
endpoint: a process that reads such a record for a disabled one writes once more that it is disabled.

Each tenant's states are bounded, whatever URLs its jobs name. A URL of a single event is never written as failing: its
schedule ends by itself, and disabling would spare no other event. At MOST_FAILING no further endpoint becomes failing.
Only an operator's command enables a disabled endpoint, so at MOST_DISABLED no further endpoint is disabled: its URL is
called for each event, and an event that is answered with 410 is given up as usual. Failure counts of the tenant with
the most are evicted first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.endpoint import (
    DisabledBecause,
    EndpointKey,
    EndpointRecord,
    EndpointState,
    InvalidEndpointRecord,
    ends_disabling,
    read_endpoint,
    read_key,
)
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.throttle import LogThrottle
from workers.delivery.outputs import PendingDelivery
from workers.delivery.post import Delivered, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings
from workers.delivery.tenant_lru import TenantLru

MOST_DISABLED = 10_000
"""Most disabled endpoints of one tenant. Only an operator's command disables one more."""
MOST_FAILING = 1_000
"""Most endpoints of one tenant that are written as failing."""
IDLE_MS = 2 * 86_400_000
"""Longer than the longest wait between two attempts: a failing endpoint overdue for so long gets none any more."""

_FAILURES = 3
"""Fewest failures in a row that count: with little traffic, one would count for the days since the last success."""
_FAILING_MS = 300_000
"""Shortest time of failures that is written for the fleet; most outages are shorter, and write nothing."""
_STREAKS = 10_000
"""Endpoints whose failures are counted; beyond that the tenant with the most loses one."""
_SAID_MS = 60_000
"""Longest time until a decision is read back: meanwhile it is logged and counted once, however many events meet it."""

log = get_logger()


@dataclass(slots=True)
class _Streak:
    """Failures in a row that this process has seen."""

    since_ms: int
    webhook_id: str
    """The event that failed first."""
    several: bool = False
    """True if another event has failed too."""
    count: int = 0


@dataclass(frozen=True, slots=True)
class Forget:
    """A tombstone to be written for this endpoint."""

    key: EndpointKey


Change = EndpointRecord | Forget


class EndpointStates:
    """The known states of endpoints. Belongs to the event loop."""

    def __init__(self, settings: DeliverySettings, metrics: Metrics) -> None:
        self._disable_after_ms = round(1000 * settings.disable_after_seconds)
        self._metrics = metrics
        self._disabled: dict[EndpointKey, tuple[int, DisabledBecause | None]] = {}
        """Time and reason of the disabling."""
        self._again: list[EndpointKey] = []
        """Disabled endpoints for which the topic has another state."""
        self._disabled_of: Counter[str] = Counter()
        """Number of disabled endpoints by tenant."""
        self._failing_of: Counter[str] = Counter()
        self._passing: OrderedDict[EndpointKey, tuple[EndpointState, int]] = OrderedDict()
        """Failing and enabled endpoints with the start in Unix milliseconds, in the order of their writing."""
        self._streaks = TenantLru[_Streak](_STREAKS)
        self._said: OrderedDict[EndpointKey, int] = OrderedDict()
        """Decisions that are not read back yet, with their time."""
        self._said_of: Counter[str] = Counter()
        self._full_throttle = LogThrottle(_SAID_MS / 1000)

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in a record of the topic."""
        try:
            endpoint = read_key(key)
            record = read_endpoint(value) if value is not None else None
        except InvalidEndpointRecord as error:
            log.warning(
                "Skipping an unreadable record about an endpoint.",
                action="endpoint-record-unreadable",
                detail=str(error),
            )
            return
        self._unsay(endpoint)
        if endpoint in self._disabled and not ends_disabling(record):
            self._again.append(endpoint)
            return
        self._forget(endpoint)
        if record is None or record.state is EndpointState.ENABLED:
            self._streaks.pop(endpoint)
        if record is not None:
            self._remember(endpoint, record)
        self._metrics.disabled_endpoints.set(len(self._disabled))

    def is_disabled(self, endpoint: EndpointKey) -> bool:
        """True if no event may be sent there."""
        return endpoint in self._disabled

    def learn(self, pending: PendingDelivery, outcome: PostOutcome, now_ms: int) -> Sequence[Change]:
        """Changes to the topic: the attempt's own, a state that is overdue, and disablings to write once more."""
        changes: list[Change] = self._written_again() if self._again else []
        if self._passing:
            changes += self._overdue(now_ms)
        if (change := self._learn(pending, outcome, now_ms)) is not None:
            changes.append(change)
        return changes

    def _learn(self, pending: PendingDelivery, outcome: PostOutcome, now_ms: int) -> Change | None:
        endpoint = pending.tenant, pending.url
        if endpoint in self._disabled:
            return None  # the attempt began before, and its outcome must not undo the disabling
        if isinstance(outcome, Delivered):
            self._streaks.pop(endpoint)
            return Forget(endpoint) if self._failing_since(endpoint) is not None else None
        if outcome.reason is FailureReason.REFUSED:
            return None  # our own rule; no request reached the endpoint
        if outcome.reason is FailureReason.GONE:
            return self._disable(pending, DisabledBecause.GONE, now_ms)
        return self._learn_failure(pending, endpoint, now_ms)

    def _learn_failure(self, pending: PendingDelivery, endpoint: EndpointKey, now_ms: int) -> Change | None:
        streak = self._count(pending, endpoint, now_ms)
        if streak.count < _FAILURES:
            return None
        since_ms = self._failing_since(endpoint)
        if since_ms is not None:
            if since_ms > now_ms:
                self._begin_now(endpoint, now_ms)
            failed_long = now_ms - since_ms >= self._disable_after_ms
            return self._disable(pending, DisabledBecause.FAILING, now_ms) if failed_long else None
        if not streak.several or now_ms - streak.since_ms < min(_FAILING_MS, self._disable_after_ms):
            return None
        if self._failing_of[pending.tenant] >= MOST_FAILING:
            return None
        # Since now, not since the first failure: other processes may have seen successes in between.
        streak.since_ms = now_ms
        return EndpointRecord(
            tenant=pending.tenant,
            url=pending.url,
            state=EndpointState.FAILING,
            at=now_ms,
            webhook_id=pending.webhook_id,
        )

    def _count(self, pending: PendingDelivery, endpoint: EndpointKey, now_ms: int) -> _Streak:
        streak = self._streaks.get(endpoint)
        if streak is None:
            streak = _Streak(now_ms, pending.webhook_id)
            self._streaks.put(endpoint, streak)
        streak.count += 1
        streak.several |= pending.webhook_id != streak.webhook_id
        return streak

    def _disable(self, pending: PendingDelivery, reason: DisabledBecause, now_ms: int) -> EndpointRecord | None:
        self._unsay_old(now_ms)
        if self._is_full(pending):
            self._say_full(pending, now_ms)
            return None
        if self._is_new((pending.tenant, pending.url), now_ms):
            self._say_disabled(pending, reason)
        return EndpointRecord(
            tenant=pending.tenant,
            url=pending.url,
            state=EndpointState.DISABLED,
            at=now_ms,
            reason=reason,
            webhook_id=pending.webhook_id,
        )

    # -- known states --------------------------------------------------------------------------------------------------

    def _failing_since(self, endpoint: EndpointKey) -> int | None:
        state, since_ms = self._passing.get(endpoint, (None, 0))
        return since_ms if state is EndpointState.FAILING else None

    def _remember(self, endpoint: EndpointKey, record: EndpointRecord) -> None:
        if record.state is EndpointState.DISABLED:
            self._disabled[endpoint] = record.at, record.reason
            self._disabled_of[endpoint[0]] += 1
            return
        self._passing[endpoint] = record.state, record.at
        if record.state is EndpointState.FAILING:
            self._failing_of[endpoint[0]] += 1

    def _begin_now(self, endpoint: EndpointKey, now_ms: int) -> None:
        """Redate a record from the future to now, so that it is forgotten in time."""
        self._passing[endpoint] = self._passing[endpoint][0], now_ms
        self._passing.move_to_end(endpoint)

    def _forget(self, endpoint: EndpointKey) -> None:
        state, _ = self._passing.pop(endpoint, (None, 0))
        if state is EndpointState.FAILING:
            _one_less(self._failing_of, endpoint[0])
        if self._disabled.pop(endpoint, None) is not None:
            _one_less(self._disabled_of, endpoint[0])

    def _overdue(self, now_ms: int) -> Sequence[Forget]:
        """The oldest failing or enabled endpoint, if overdue. One at a time keeps pace, since each came by an attempt.

        It is forgotten here at once. If the tombstone is not settled, another process writes it, or this one after a
        restart.
        """
        while (first := next(iter(self._passing.items())))[1][1] > now_ms:
            self._begin_now(first[0], now_ms)
        endpoint, (_, since_ms) = first
        if now_ms - since_ms < self._disable_after_ms + IDLE_MS:
            return ()
        self._forget(endpoint)
        return (Forget(endpoint),)

    def _written_again(self) -> list[Change]:
        again = [(endpoint, self._disabled[endpoint]) for endpoint in self._again if endpoint in self._disabled]
        self._again.clear()
        return [
            EndpointRecord(tenant=tenant, url=url, state=EndpointState.DISABLED, at=at, reason=reason)
            for (tenant, url), (at, reason) in again
        ]

    # -- decisions and their logs --------------------------------------------------------------------------------------

    def _is_full(self, pending: PendingDelivery) -> bool:
        """True if the tenant has its limit of disabled endpoints, counting decisions that are not read back yet."""
        decided = self._disabled_of[pending.tenant] + self._said_of[pending.tenant]
        return decided >= MOST_DISABLED and (pending.tenant, pending.url) not in self._said

    def _is_new(self, what: EndpointKey, now_ms: int) -> bool:
        """True if this was not decided within the last minute; notes the decision."""
        if what in self._said:
            return False
        self._said[what] = now_ms
        self._said_of[what[0]] += 1
        return True

    def _unsay_old(self, now_ms: int) -> None:
        while self._said and now_ms - next(iter(self._said.values())) >= _SAID_MS:
            self._unsay(next(iter(self._said)))

    def _unsay(self, what: EndpointKey) -> None:
        if self._said.pop(what, None) is not None:
            _one_less(self._said_of, what[0])

    def _say_disabled(self, pending: PendingDelivery, reason: DisabledBecause) -> None:
        self._metrics.endpoints_disabled.labels(str(reason)).inc()
        log.warning(
            "Disabled an endpoint; keeping its events as dead letters.",
            action="inference.endpoint.disabled",
            reason=str(reason),
            tenant=pending.tenant,
            origin=pending.origin,
            job_id=pending.job_id,
            webhook_id=pending.webhook_id,
        )

    def _say_full(self, pending: PendingDelivery, now_ms: int) -> None:
        if self._full_throttle.admit(now_ms / 1000, pending.tenant) is None:
            return
        log.warning(
            "A tenant has the most disabled endpoints allowed; leaving another failing one enabled.",
            action="inference.endpoint.not-disabled",
            most=MOST_DISABLED,
            tenant=pending.tenant,
            origin=pending.origin,
        )


def _one_less(counted: Counter[str], tenant: str) -> None:
    """Count one less for the tenant, and drop it at zero."""
    counted[tenant] -= 1
    if not counted[tenant]:
        del counted[tenant]
