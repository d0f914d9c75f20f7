"""Delivery's handler: for each result it sends a signed POST, and returns records of the outcome.

Results come from `model_results`, and ready events from `callback_events`. Records of both kinds come back from the
tiers. A job that starts later moves on to a tier or its lane. Each other record ends in one of these ways:

    no callback-url           no output: the result is only stored
    endpoint disabled         dead_letters; no attempt
    early                     hops to another tier; no attempt
    destination busy          deferred to the smallest tier, or to a longer one if the turn is far off; no attempt
    rate limit reached        likewise; no attempt
    breaker open              deferred to a tier that fits the breaker's open time; no attempt
    descriptors, ports or     deferred to the smallest tier; no attempt
      memory exhausted
    POST, 2xx                 an attempt record
    POST, anything else       an attempt record, and the record itself in a tier, or in dead_letters with its reason
    unusable                  dead_letters

A crash between the POST and the settle repeats the POST, with the same `webhook-id` and the same body.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from schemas.codec import InvalidResult
from schemas.event import event_body
from schemas.signature import Signer
from schemas.topics import TRACEPARENT, Topics, hop
from telemetry.clock import Clock
from telemetry.logs import get_logger, is_debugging
from telemetry.metrics import Metrics
from telemetry.traces import collecting, exemplar, parse_traceparent
from workers.delivery import outputs
from workers.delivery.breaker import BreakerState
from workers.delivery.destinations import (
    Destination,
    DestinationBusy,
    Destinations,
    OriginLeftAlone,
    RateLimit,
    RateLimited,
)
from workers.delivery.endpoint_events import UnusableRecord
from workers.delivery.endpoint_states import EndpointStates
from workers.delivery.keyring import Keyring
from workers.delivery.outputs import DeferralReason, PendingDelivery, read_pending
from workers.delivery.post import Delivered, Exhausted, FailedDelivery, Poster, PostOutcome
from workers.delivery.retries import (
    EXHAUSTED,
    GiveUp,
    Retry,
    Schedule,
    busy_tier,
    decide,
    deferral_tier,
    is_early,
    left_ms,
)
from workers.delivery.settings import DeliverySettings
from workers.delivery.tier_pace import NO_TIERS, TierPace
from workers.stage.record import Failure, Output, Record

GROUP_COMMIT_SECONDS = 0.05
"""Longest time for which an attempt's record waits for other records to share its transaction.

The callback is already sent, so no caller waits.
"""

_SPARES_MS = 300_000
"""A record that has waited for less than this time spares its second attempt, after which it would wait longer."""

UNUSABLE = "unusable_result"
DISABLED = "endpoint_disabled"

log = get_logger()


class DeliveryHandler(TierPace):
    """Handles the delivery stage's records and sets their pace, on the stage's event loop.

    Call `close` when the stage has ended.
    """

    def __init__(
        self,
        topics: Topics,
        keyring: Keyring,
        poster: Poster,
        clock: Clock,
        metrics: Metrics,
        settings: DeliverySettings,
        rng: random.Random | None = None,
        former_tiers: Mapping[str, float] = NO_TIERS,
        lanes: Iterable[str] = (),
    ) -> None:
        """`lanes` are the lanes that exist, to which jobs that start later may return."""
        super().__init__(topics, clock, former_tiers)
        self._topics = topics
        self._tiers = topics.tiers
        self._origin_rate_limits = settings.origin_rate_limits
        self._of_jobs = frozenset(topics.later.values())
        self._lanes = frozenset(lanes)
        self._keyring = keyring
        self._poster = poster
        self._metrics = metrics
        self._schedule = Schedule(topics.tier_delays_seconds, settings.jitter)
        # An event for a dead origin is given up after this time. By then the event's endpoint is disabled, unless no
        # other event names the endpoint.
        self._longest_waited_ms = 1000 * (self._schedule.length_seconds + settings.disable_after_seconds)
        self.destinations = Destinations(settings, clock, self._say_breaker)
        """The destinations that have records in this process, or have failed lately."""
        self.states = EndpointStates(settings, metrics)
        """The endpoints' states, kept up to date from the topic `callback_endpoints`."""
        self._rng = rng or random.SystemRandom()
        self._traced = collecting()
        self._deliver_seconds = metrics.job_seconds.labels("deliver")
        self._callbacks = metrics.callbacks.begin()
        self._breaker_changes = metrics.breaker_changes
        self._breaker_changes.begin()
        self._dead_letters = metrics.dead_letters
        self._dead_letters.begin()
        self._age = metrics.callback_age_seconds

    async def handle(self, record: Record) -> Sequence[Output]:
        """Handle one record. The module's docstring lists the possible endings."""
        if record.topic in self._of_jobs:
            return (self._moved_on(record),)
        try:
            pending = read_pending(record)
            return await self._deliver(record, pending) if pending is not None else ()
        except (UnusableRecord, InvalidResult) as error:
            return (self._unusable(record, str(error)),)

    async def _deliver(self, record: Record, pending: PendingDelivery) -> Sequence[Output]:
        if self.states.is_disabled((pending.tenant, pending.url)):
            return (self._kept(record, pending),)
        left = self._left_to_wait(record, pending)
        if left is not None:
            tier = hop(left, self._schedule.tiers)
            return (outputs.hopping(record, self._tiers[tier], pending, left, self.steady_ms()),)
        try:
            # After a first attempt the waits are long, so such a record leaves probes to records without an attempt.
            spares = pending.attempts > 0 and pending.waited_ms < _SPARES_MS
            size, limit = len(record.value), _rate_limit(pending, self._origin_rate_limits)
            with await self.destinations.place(pending.destination, size, spares=spares, limit=limit) as place:
                # The body is built only after a place is granted, because records of a hung destination come here many
                # times, and most times get no place.
                body, at = _body(record, pending), self._clock.time()
                headers = self._headers(pending, body, at)
                number, tenant = pending.attempts + 1, pending.tenant
                outcome = place.outcome = await self._poster.post(pending.url, body, headers, tenant, number)
        except OriginLeftAlone as alone:
            return (self._left_alone(record, pending, alone),)
        except DestinationBusy as busy:
            tier = busy_tier(busy.turn_seconds, pending.deferred, self._schedule.waits)
            is_limited = isinstance(busy, RateLimited)
            reason = DeferralReason.RATE_LIMITED if is_limited else DeferralReason.DESTINATION_BUSY
            return (self._deferred(record, pending, reason, tier),)
        except Exhausted:
            reason = DeferralReason.RESOURCES_EXHAUSTED
            return (self._deferred(record, pending, reason, self._schedule.smallest_tier),)
        return self._after_attempt(record, pending, outcome, int(at * 1000), len(body))

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return the dead letter of a record whose handling failed for good.

        A job that starts later is moved on instead: moving it runs nothing of the job.
        """
        if record.topic in self._of_jobs:
            return (self._moved_on(record),)
        return (self._dead_letter(record, failure.code, failure.message, failure.attempts),)

    async def close(self) -> None:
        """Close all connections."""
        await self._poster.close()

    def _moved_on(self, record: Record) -> Output:
        return outputs.moved_on(record, self.tier_ms(record), self.steady_ms(), self._topics, self._lanes)

    def _left_to_wait(self, record: Record, pending: PendingDelivery) -> int | None:
        """Return the milliseconds that an early record still has to wait; None if the record is due."""
        if pending.not_before_ms is None:
            return None
        left = left_ms(pending.not_before_ms, self._now_ms(), pending.left_ms, self.tier_ms(record))
        return left if is_early(left, pending.attempts, self._schedule) else None

    def _left_alone(self, record: Record, pending: PendingDelivery, alone: OriginLeftAlone) -> Output:
        """Defer a record whose origin gets no attempts now. Give the record up after days if the origin is dead."""
        if alone.dead and pending.waited_ms > self._longest_waited_ms:
            return self._unanswered(record, pending)
        tier = deferral_tier(alone.wait_seconds, pending.waited_ms, self._schedule.tiers)
        return self._deferred(record, pending, DeferralReason.ORIGIN_LEFT_ALONE, tier)

    def _deferred(self, record: Record, pending: PendingDelivery, reason: DeferralReason, tier: float) -> Output:
        self._metrics.deferred.inc()
        return outputs.deferred(record, self._tiers[tier], pending, reason, round(1000 * tier), self.steady_ms())

    def _unanswered(self, record: Record, pending: PendingDelivery) -> Output:
        """Return the dead letter of an event that has waited too long for a dead origin."""
        log.warning(
            "A callback has waited too long for a failing origin; keeping it as a dead letter.",
            action="callback-given-up",
            reason=EXHAUSTED,
            **_fields(pending),
        )
        days = pending.waited_ms / 86_400_000
        detail = f"the callback has waited for {days:.1f} days, and its origin fails at each try"
        return self._dead_letter(record, EXHAUSTED, detail, pending.attempts)

    def _kept(self, record: Record, pending: PendingDelivery) -> Output:
        """Return the dead letter of an event whose endpoint is disabled."""
        log.info(
            "The endpoint of a callback is disabled; keeping the callback as a dead letter.",
            action="callback-kept",
            **_fields(pending),
        )
        return self._dead_letter(record, DISABLED, "callback_url: the endpoint is disabled", pending.attempts)

    def _after_attempt(
        self, record: Record, pending: PendingDelivery, outcome: PostOutcome, at_ms: int, sent_bytes: int
    ) -> Sequence[Output]:
        """Return the records of an attempt's outcome."""
        now_ms = self._now_ms()
        labels = exemplar(parse_traceparent(pending.traceparent)) if self._traced else None
        self._deliver_seconds.observe(outcome.duration_seconds, labels)
        written = [outputs.attempt(pending, self._topics, outcome, at_ms, sent_bytes)]
        if isinstance(outcome, Delivered):
            self._callbacks["delivered"].inc()
            self._age.observe(max(0, now_ms - pending.result_at_ms) / 1000, labels)
            if is_debugging():
                log.debug(
                    "A callback was delivered.", action="callback-delivered", status=outcome.status, **_fields(pending)
                )
            if self.states.changes_nothing((pending.tenant, pending.url)):
                return written
        else:
            self._callbacks[outcome.reason].inc()
            written += self._after_failure(record, pending, outcome, now_ms)
        changes = self.states.learn(pending, outcome, self.steady_ms())
        return written + [outputs.endpoint_state(key, state, self._topics) for key, state in changes]

    def _after_failure(
        self, record: Record, pending: PendingDelivery, outcome: FailedDelivery, now_ms: int
    ) -> list[Output]:
        attempts = pending.attempts + 1
        steady_ms = self.steady_ms()
        match decide(attempts, outcome, now_ms, self._rng, self._schedule):
            case Retry(tier_delay, not_before_ms):
                wait_ms = not_before_ms - now_ms
                self._say_retried(pending, outcome, wait_ms / 1000)
                alone = self.destinations.left_alone_seconds(pending.destination)
                if 1000 * alone <= wait_ms:
                    return [outputs.waiting(record, self._tiers[tier_delay], pending, now_ms, wait_ms, steady_ms)]
                # The failed attempt was a probe, and the next probe comes after this event's own wait.
                tier = max(tier_delay, deferral_tier(alone, pending.waited_ms, self._schedule.tiers))
                deferred_ms = max(0, round(1000 * tier) - wait_ms)
                topic = self._tiers[tier]
                return [outputs.waiting(record, topic, pending, now_ms, wait_ms, steady_ms, deferred_ms)]
            case GiveUp(reason):
                self._say_given_up(pending, outcome, reason)
                return [self._dead_letter(record, reason, _detail(outcome), attempts)]

    def _headers(self, pending: PendingDelivery, body: bytes, now: float) -> dict[str, str]:
        """Return the request's headers, signed with the attempt's timestamp and the callback's id."""
        headers = self._signer(pending, now).headers(pending.webhook_id, int(now), body)
        if pending.event is not None:
            headers |= pending.event.http_headers
        if pending.traceparent is not None:
            headers[TRACEPARENT] = pending.traceparent
        return headers

    def _signer(self, pending: PendingDelivery, now: float) -> Signer:
        if pending.event is None:
            return self._keyring.signer(pending.tenant, now)
        return self._keyring.endpoint_signer(pending.tenant, pending.event.endpoint_id, pending.event.versions, now)

    def _unusable(self, record: Record, detail: str) -> Output:
        log.warning(
            "A record is not a result with a usable callback; keeping it as a dead letter.",
            action="result-unusable",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            detail=detail,
        )
        return self._dead_letter(record, UNUSABLE, detail, 0)

    def _dead_letter(self, record: Record, reason: str, detail: str, attempts: int) -> Output:
        self._dead_letters.labels(reason).inc()
        return outputs.dead_letter(record, self._topics, reason, detail, attempts)

    def _say_retried(self, pending: PendingDelivery, outcome: FailedDelivery, wait_seconds: float) -> None:
        log.info(
            "A callback attempt failed; trying again later.",
            action="callback-failed",
            status=outcome.status,
            reason=str(outcome.reason),
            wait_seconds=round(wait_seconds, 3),
            **_fields(pending),
        )

    def _say_given_up(self, pending: PendingDelivery, outcome: FailedDelivery, reason: str) -> None:
        log.warning(
            "A callback failed permanently; keeping it as a dead letter.",
            action="callback-given-up",
            status=outcome.status,
            reason=reason,
            detail=_detail(outcome),
            **_fields(pending),
        )

    def _say_breaker(self, destination: Destination, state: BreakerState, seconds: float) -> None:
        self._breaker_changes.labels(str(state)).inc()
        tenant, origin = destination
        log.info(
            "The circuit breaker of an origin changed its state.",
            action="breaker-changed",
            state=str(state),
            seconds=round(seconds, 3),
            tenant=tenant,
            origin=origin,
        )

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)


def _body(record: Record, pending: PendingDelivery) -> bytes:
    """Return the request's body: a ready event unchanged, or the event made from a result. Raises InvalidResult."""
    if pending.event is not None:
        return record.value
    return event_body(record.value, pending.webhook_id, pending.tenant)


def _rate_limit(pending: PendingDelivery, of_origins: Mapping[str, float]) -> RateLimit | None:
    """Return the lower limit of the endpoint and its origin; the limit's key is the endpoint if it states one."""
    of_origin, event = of_origins.get(pending.origin), pending.event
    if event is not None and event.rate_limit is not None:
        own = event.rate_limit if of_origin is None else min(event.rate_limit, of_origin)
        return RateLimit((pending.tenant, event.endpoint_id), own)
    return None if of_origin is None else RateLimit(("", pending.origin), of_origin)


def _fields(pending: PendingDelivery) -> dict[str, str | int | None]:
    return {
        "job_id": pending.job_id,
        "webhook_id": pending.webhook_id,
        "origin": pending.origin,
        "attempt": pending.attempts + 1,
        "traceparent": pending.traceparent,
    }


def _detail(outcome: FailedDelivery) -> str:
    """Return a dead letter's reason in words: the field to mend, or the last attempt's failure."""
    if outcome.detail is not None:
        return f"callback_url: {outcome.detail}"
    status = f" (status {outcome.status})" if outcome.status is not None else ""
    return f"the last attempt: {outcome.reason}{status}"
