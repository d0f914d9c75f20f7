"""The states of endpoints: failing, disabled or enabled. An endpoint here is a (tenant, full URL).

The fleet shares the states through the compacted topic `callback_endpoints`:

    (unknown) ───────── attempts of several events fail for minutes ─► failing   since the record's time
    failing ─────────── an attempt succeeds, in any process ─────────► (unknown): a tombstone
    failing ─────────── it has failed for days ──────────────────────► disabled
    any ─────────────── it answers 410 ──────────────────────────────► disabled
    any ─────────────── `postback endpoints …` ──────────────────────► disabled, or enabled
    failing, enabled ── no change for days ──────────────────────────► (unknown): a tombstone

"Failing" is shared so that a restart does not reset the count of days, and so that a success in any process ends the
state. A process writes a decision in the same transaction as the attempt's record. Every process, the writer included,
applies the decision when it reads the record. Meanwhile an operator or another process may have disabled the endpoint.
So neither a tombstone nor "failing" enables a disabled endpoint: a process that reads either record for a disabled
endpoint writes "disabled" again.

The number of a tenant's states is bounded, whatever URLs its jobs name. A URL that only one event names is never
written as failing, because disabling the URL would spare no other event, and the one event's schedule ends by itself.
At MOST_FAILING, no further endpoint becomes failing. Only an operator's command enables a disabled endpoint, so at
MOST_DISABLED no further endpoint is disabled. Events still call the endpoint's URL, and an event that is answered with
410 is given up as usual. If the table of failure counts is full, the tenant with the most entries loses one entry.
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
"""Limit on a tenant's disabled endpoints. At the limit, only an operator's command disables further endpoints."""
MOST_FAILING = 1_000
"""Limit on a tenant's endpoints that are written as failing."""
IDLE_MS = 2 * 86_400_000
"""Milliseconds past `disable_after_seconds` after which a failing or enabled state is forgotten.

This time is longer than the longest wait between two attempts, so no attempt at a failing endpoint is left by then.
"""

_FAILURES = 3
"""An endpoint can be failing only after this number of failures in a row.

With little traffic, a single failure would otherwise look like days of failures.
"""
_FAILING_MS = 300_000
"""Milliseconds of failures after which a process writes "failing". Most outages end sooner, and need no record."""
_STREAKS = 10_000
"""Limit on endpoints with failure counts. At the limit, the tenant with the most entries loses one entry."""
_SAID_MS = 60_000
"""Longest time until this process reads its own decision from the topic. Until then, further events of the endpoint do
not log or count the decision again."""

log = get_logger()


@dataclass(slots=True)
class _Streak:
    """An endpoint's failures in a row, counted by this process."""

    since_ms: int
    webhook_id: str
    """Id of the event that failed first."""
    several: bool = False
    """True if events other than this first one have failed too."""
    count: int = 0


Change = tuple[EndpointKey, EndpointRecord | None]
"""A record to write for an endpoint: its new state, or a tombstone."""


class EndpointStates:
    """The known states of endpoints. Use this object on the event loop only."""

    def __init__(self, settings: DeliverySettings, metrics: Metrics) -> None:
        self._disable_after_ms = round(1000 * settings.disable_after_seconds)
        self._metrics = metrics
        metrics.endpoints_disabled.begin()
        self._disabled: dict[EndpointKey, tuple[int, DisabledBecause | None]] = {}
        """Disabled endpoints, with the time and reason of the disabling."""
        self._again: list[EndpointKey] = []
        """Disabled endpoints whose newest record in the topic is not "disabled".

        The record "disabled" is written again.
        """
        self._disabled_of: Counter[str] = Counter()
        """Number of disabled endpoints by tenant."""
        self._failing_of: Counter[str] = Counter()
        self._passing: OrderedDict[EndpointKey, tuple[EndpointState, int]] = OrderedDict()
        """Failing and enabled endpoints with the state's start in Unix milliseconds, in the order of their records."""
        self._streaks = TenantLru[_Streak](_STREAKS)
        self._said: OrderedDict[EndpointKey, int] = OrderedDict()
        """Endpoints with a decision that is not read back yet, and the decision's time."""
        self._said_of: Counter[str] = Counter()
        self._full_throttle = LogThrottle(_SAID_MS / 1000)
        self._is_shown = False

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Apply a record of the topic."""
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
        if self._is_shown:
            self.show()

    def show(self) -> None:
        """Publish the number of disabled endpoints from now on. Call this after all present records are applied.

        The
        number grows while the records are read, and an alert on its growth would fire at each start.
        """
        self._is_shown = True
        self._metrics.disabled_endpoints.set(len(self._disabled))

    def is_disabled(self, endpoint: EndpointKey) -> bool:
        """True if no event may be sent to the endpoint."""
        return endpoint in self._disabled

    def changes_nothing(self, endpoint: EndpointKey) -> bool:
        """True if a delivery to the endpoint changes no state, so that there is nothing to learn from it."""
        return not self._passing and not self._again and endpoint not in self._streaks

    def learn(self, pending: PendingDelivery, outcome: PostOutcome, now_ms: int) -> Sequence[Change]:
        """Return the changes to write: this attempt's change, an overdue state's tombstone, and repeated disablings."""
        changes: list[Change] = self._written_again() if self._again else []
        if self._passing:
            changes += self._overdue(now_ms)
        if (change := self._learn(pending, outcome, now_ms)) is not None:
            changes.append(change)
        return changes

    def _learn(self, pending: PendingDelivery, outcome: PostOutcome, now_ms: int) -> Change | None:
        endpoint = pending.tenant, pending.url
        if endpoint in self._disabled:
            return None  # the attempt began before the endpoint was disabled, and must not enable the endpoint
        if isinstance(outcome, Delivered):
            self._streaks.pop(endpoint)
            return (endpoint, None) if self._failing_since(endpoint) is not None else None
        if outcome.reason is FailureReason.REFUSED:
            return None  # the egress guard refused the attempt, so no request reached the endpoint
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
        # The state starts now, not at the first failure, because other processes may have seen successes in between.
        streak.since_ms = now_ms
        return self._change(pending, EndpointState.FAILING, now_ms)

    def _count(self, pending: PendingDelivery, endpoint: EndpointKey, now_ms: int) -> _Streak:
        streak = self._streaks.get(endpoint)
        if streak is None:
            streak = _Streak(now_ms, pending.webhook_id)
            self._streaks.put(endpoint, streak)
        streak.count += 1
        streak.several |= pending.webhook_id != streak.webhook_id
        return streak

    def _change(
        self, pending: PendingDelivery, state: EndpointState, now_ms: int, reason: DisabledBecause | None = None
    ) -> Change:
        tenant, url = pending.tenant, pending.url
        event = pending.webhook_id
        return (tenant, url), EndpointRecord(
            tenant=tenant, url=url, state=state, at=now_ms, reason=reason, webhook_id=event
        )

    def _disable(self, pending: PendingDelivery, reason: DisabledBecause, now_ms: int) -> Change | None:
        self._unsay_old(now_ms)
        if self._is_full(pending):
            self._say_full(pending, now_ms)
            return None
        if self._is_new((pending.tenant, pending.url), now_ms):
            self._say_disabled(pending, reason)
        return self._change(pending, EndpointState.DISABLED, now_ms, reason)

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
        """Set a state's time to the present, because the state's time was found to be in the future.

        Otherwise `_overdue` would forget the state too late.
        """
        self._passing[endpoint] = self._passing[endpoint][0], now_ms
        self._passing.move_to_end(endpoint)

    def _forget(self, endpoint: EndpointKey) -> None:
        state, _ = self._passing.pop(endpoint, (None, 0))
        if state is EndpointState.FAILING:
            _one_less(self._failing_of, endpoint[0])
        if self._disabled.pop(endpoint, None) is not None:
            _one_less(self._disabled_of, endpoint[0])

    def _overdue(self, now_ms: int) -> Sequence[Change]:
        """Forget the oldest failing or enabled endpoint if it is overdue, and return its tombstone.

        One tombstone per attempt is enough, since an attempt also creates at most one failing state. If the tombstone
        is not settled, another process writes one, or this process after a restart.
        """
        while (first := next(iter(self._passing.items())))[1][1] > now_ms:
            self._begin_now(first[0], now_ms)
        endpoint, (_, since_ms) = first
        if now_ms - since_ms < self._disable_after_ms + IDLE_MS:
            return ()
        self._forget(endpoint)
        return ((endpoint, None),)

    def _written_again(self) -> list[Change]:
        again = [(endpoint, self._disabled[endpoint]) for endpoint in self._again if endpoint in self._disabled]
        self._again.clear()
        return [
            (one, EndpointRecord(tenant=one[0], url=one[1], state=EndpointState.DISABLED, at=at, reason=reason))
            for one, (at, reason) in again
        ]

    # -- decisions and their logs --------------------------------------------------------------------------------------

    def _is_full(self, pending: PendingDelivery) -> bool:
        """True if the tenant has reached MOST_DISABLED; decisions that are not read back yet are included."""
        decided = self._disabled_of[pending.tenant] + self._said_of[pending.tenant]
        return decided >= MOST_DISABLED and (pending.tenant, pending.url) not in self._said

    def _is_new(self, what: EndpointKey, now_ms: int) -> bool:
        """Note a decision to disable the endpoint.

        Return False if a decision about it was noted within the last minute.
        """
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
            "A tenant has the maximum number of disabled endpoints; leaving another failing endpoint enabled.",
            action="inference.endpoint.not-disabled",
            most=MOST_DISABLED,
            tenant=pending.tenant,
            origin=pending.origin,
        )


def _one_less(counted: Counter[str], tenant: str) -> None:
    """Lower the tenant's count by one, and remove the tenant at zero."""
    counted[tenant] -= 1
    if not counted[tenant]:
        del counted[tenant]
