"""Shares of the process's window for destinations, so that a slow or dead origin cannot hold the whole window.

A destination is a (tenant, origin). Four checks decide if an attempt may start:

    breaker           an origin that does not answer gets only one probe at a time (breaker.py); other records wait for
                      the probe's outcome if it is expected soon. A record whose next wait is long leaves the probe to
                      records whose next wait is short
    places            a limit on simultaneous attempts; a 429, 502 or 504 halves the limit, each answer adds one
    queue             a limit on records that wait briefly for a place
    free window       dynamic thresholds (Choudhury and Hahne 1998), in four rules:
                      A tenant may hold twice the free window. A sole tenant gets two thirds of the window. Each further
                      hung tenant, with any number of origins, gets at most two thirds of the window's free part.
                      An origin may hold as many records as its tenant may still take, but always at least one. A sole
                      origin gets half the window; n hung origins share their tenant's part.
                      Strangers are a tenant's origins whose last attempt was not answered. All strangers together may
                      hold as much as their tenant may still take. The strangers of a sole tenant get half the window,
                      so that the tenant's other origins keep a sixth.
                      One stranger may hold as much as all strangers may still take. A sole stranger gets two fifths of
                      the window, so that a new origin gets attempts and can show that it answers.

The window is counted in units. A record takes one unit; a large record takes more. Because of these units, all records
in the window together have at most half of the bytes that the stage may take. The other half is for records that are
queued or wait to be settled. So large records of hung origins do not stop the stage from fetching.

An endpoint or origin may have a rate limit. `Spacing` then gives each of its attempts a time, and the attempt waits for
the time in its place, if the time comes soon. Each process spaces its own attempts.

If an attempt may not start now, `place` raises `TurnedAway`, and the handler defers the record to a tier. The shares
are local to each process and need no lock, since all of this module runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from telemetry.clock import Clock
from workers.delivery.breaker import Breaker, BreakerState, OriginSignal, asked_to_wait, signal_of
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings
from workers.delivery.tenant_lru import TenantLru
from workers.system.memory_limit import LARGEST_WINDOW

Destination = tuple[str, str]
"""Tenant and origin."""

_REMEMBERED = 10_000
"""Limit on idle destinations whose failures are kept, and on names of destinations that answered.

At the limit, the tenant with the most entries loses one entry."""
_OTHERS_SECONDS = 35.0
"""Seconds after the next probe's time in which a record that was turned away comes back from the smallest tiers."""
_TENANT_FACTOR = 2
"""A tenant's limit as a multiple of the free window."""
_SPACED_FACTOR = 1.5
"""The longest wait for a rate-limited attempt's time, as a multiple of `destination_wait_seconds`. So the records that
stayed last until deferred ones return from the smallest tier."""

_ROUND_SECONDS = 5.0
"""Length of a counting round. Turned-away records return after the smallest tier, and are then counted again."""
_APART_SECONDS = 3 * _ROUND_SECONDS
"""Seconds without a turned-away record after which the estimate starts over."""
_MEMORY_SECONDS = 60.0
"""Seconds after which the attempts counted so far are halved; longer than one attempt may take."""


class TurnedAway(Exception):  # noqa: N818 - named after the event
    """No attempt may start now."""


class DestinationBusy(TurnedAway):
    """The destination has used up its share of this process's window."""

    def __init__(self, turn_seconds: float) -> None:
        super().__init__()
        self.turn_seconds = turn_seconds
        """Estimated seconds until this record's turn comes, after all recently turned-away records; 0 if unknown."""


class RateLimited(DestinationBusy):
    """The rate limit of the endpoint or origin allows no attempt soon."""


class OriginLeftAlone(TurnedAway):
    """The destination's breaker is open, or its probe will not end soon."""

    def __init__(self, wait_seconds: float, *, dead: bool) -> None:
        super().__init__()
        self.wait_seconds = wait_seconds
        """Seconds until the next probe, or until the expected end of the probe under way."""
        self.dead = dead
        """True if probes of the origin keep failing; False if the origin only asked for a wait."""


@dataclass(slots=True)
class QueueEstimate:
    """Estimates a busy destination's queue of turned-away records. Times are monotonic seconds.

    Counts served and turned-away records, from the first turned-away record on.
    """

    _began: float = 0.0
    _round: float = 0.0
    _last: float = float("-inf")
    """Time of the last turned-away record."""
    _away: int = 0
    """Records turned away in this round."""
    _served: float = 0.0
    _served_last: float = 0.0

    def serve(self, now: float, weight: float = 1.0) -> None:
        """Count a finished attempt. `weight` is above 1 while the limit on simultaneous attempts is growing."""
        self._served += weight
        self._served_last = now

    def turn_away(self, now: float) -> float:
        """Count a turned-away record. Return the estimated seconds until the record's turn, 0 while unknown."""
        if now - self._last > _APART_SECONDS:
            self._began = self._round = now
            self._served, self._away = 0.0, 0
        elif now - self._round >= _ROUND_SECONDS:
            self._round, self._away = now, 0
        self._last = now
        self._away += 1
        return self._away * self._seconds_for_one(now)

    def _seconds_for_one(self, now: float) -> float:
        if now - self._began < _ROUND_SECONDS or not self._served:
            return 0.0
        # The counted time ends with the last finished attempt. Many attempts may finish at once, and the pause after
        # them must not count as a slowdown.
        seconds = self._served_last - self._began
        for_one = seconds / self._served
        if seconds >= _MEMORY_SECONDS:
            self._began, self._served = self._began + seconds / 2, self._served / 2
        return for_one


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The most attempts a second for all records with the same key."""

    key: tuple[str, str]
    """A tenant and its endpoint's id; or an empty text and an origin, for all tenants together."""
    per_second: float


@dataclass(slots=True)
class _Pace:
    next_at: float
    """The monotonic time of the next attempt that is not given to a record yet."""
    crowd: QueueEstimate = field(default_factory=QueueEstimate)


class Spacing:
    """Gives attempts at rate-limited endpoints their times, each 1 / `per_second` after the one before."""

    def __init__(self) -> None:
        self._paces = TenantLru[_Pace](_REMEMBERED)

    def require_soon(self, limit: RateLimit, now: float, longest_seconds: float) -> None:
        """Raise RateLimited if the next attempt's time is further off than `longest_seconds`."""
        pace = self._of(limit, now)
        if pace.next_at - now > longest_seconds:
            raise RateLimited(pace.crowd.turn_away(now))

    def take(self, limit: RateLimit, now: float) -> float:
        """Return the seconds until the next attempt's time, which is the caller's."""
        pace = self._of(limit, now)
        begins = max(now, pace.next_at)
        pace.next_at = begins + 1 / limit.per_second
        pace.crowd.serve(now)
        return begins - now

    def _of(self, limit: RateLimit, now: float) -> _Pace:
        pace = self._paces.get(limit.key)
        if pace is None:
            pace = _Pace(now)
            self._paces.put(limit.key, pace)
        return pace


@dataclass(slots=True)
class _Share:
    """A tenant's part of the window, in units."""

    held: int = 0
    strangers: int = 0
    """Units that strangers hold: origins whose last attempt was not answered."""
    crowd: QueueEstimate | None = None
    """Queue estimate for the tenant's origins that hold no units because the tenant may take no more."""


_NOTHING = _Share()


@dataclass(slots=True)
class _Load:
    """A destination's share of this process's window, and the state of the destination's origin."""

    key: Destination
    breaker: Breaker
    allowed: int
    """The current limit on simultaneous attempts."""
    answers: bool
    """True if the last attempt was answered; False before the first attempt. If False, the origin is a stranger."""
    share: _Share = field(default_factory=_Share)
    """The tenant's share, while the destination holds units."""
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    held: int = 0
    """Units of the window held by running and waiting records, and by records whose wait has just failed."""
    crowd: QueueEstimate | None = None
    others_until: float = 0.0
    """Time until which a record is expected that can make the probe in place of those that spare their attempts."""


@dataclass(slots=True)
class AttemptSlot:
    """The right to make one attempt; the end of a `with` block gives the right back.

    `outcome` stays None if this process cut the attempt off.
    """

    _destinations: Destinations
    _load: _Load
    _units: int
    probe: bool
    """True if this is the one attempt that a half-open breaker lets through."""
    outcome: PostOutcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._destinations._end(self._load, self._units, self.outcome, probe=self.probe)


class Destinations:
    """Gives out places, each for one attempt.

    `on_change` is called with a destination, its breaker's new state, and the state's length in seconds.

    A destination's state is kept only while the destination holds units or after recent failures. For a destination
    that answered, only the name is kept.
    """

    def __init__(
        self,
        settings: DeliverySettings,
        clock: Clock,
        on_change: Callable[[Destination, BreakerState, float], None] = lambda destination, state, seconds: None,
    ) -> None:
        self._settings = settings
        self._most = settings.destination_concurrency
        self._clock = clock
        self._on_change = on_change
        self._loads: dict[Destination, _Load] = {}
        """Destinations that hold units of the window; the window's size bounds their number."""
        self._idle = TenantLru[_Load](_REMEMBERED)
        """Destinations that hold no units and have failed recently."""
        self._answering = TenantLru[None](_REMEMBERED)
        """Destinations that hold no units and answered last."""
        self._shares: dict[str, _Share] = {}
        """Shares of the tenants that hold units."""
        self._held = 0
        self._spacing = Spacing()
        self._unit_bytes = max(1, (settings.window_bytes or LARGEST_WINDOW) // 2 // settings.window_records)

    def __len__(self) -> int:
        """Number of destinations with a known state."""
        return len(self._loads) + len(self._idle)

    @property
    def held(self) -> int:
        """Units of the window that all destinations hold together."""
        return self._held

    def left_alone_seconds(self, destination: Destination) -> float:
        """Return the seconds until the destination's breaker lets a probe through; 0 if attempts may start now."""
        load = self._loads.get(destination) or self._idle.get(destination)
        return load.breaker.seconds_left(self._clock.monotonic()) if load is not None else 0.0

    async def place(
        self, destination: Destination, size: int, *, spares: bool = False, limit: RateLimit | None = None
    ) -> AttemptSlot:
        """Return one of the destination's places, after a wait if needed. Raises TurnedAway if no place becomes free.

        `size` is the record's size in bytes. A record that `spares` its attempt leaves a probe to other records, if one
        is expected. With a `limit` the place is returned at the attempt's time. The caller enters the place at once,
        and sets the place's `outcome` later.
        """
        if limit is not None:
            self._require_soon(limit)
        load, units = self._loads.get(destination) or self._load_of(destination), 1 + size // self._unit_bytes
        is_probe = self._enter(load, units, spares)
        if is_probe is None:
            await self._queue_up(load, units, spares)
        slot = AttemptSlot(self, load, units, is_probe is True)
        if limit is not None:
            await self._reach_time(slot, limit, spares)
        return slot

    def _require_soon(self, limit: RateLimit) -> None:
        longest = _SPACED_FACTOR * self._settings.destination_wait_seconds
        self._spacing.require_soon(limit, self._clock.monotonic(), longest)

    async def _reach_time(self, slot: AttemptSlot, limit: RateLimit, spares: bool) -> None:
        """Wait in a place until the attempt's time. Raises TurnedAway, also if the breaker opens meanwhile."""
        try:
            self._require_soon(limit)  # again, since others took times while this record waited for its place
            wait = self._spacing.take(limit, self._clock.monotonic())
            if wait <= 0:
                return
            await asyncio.sleep(wait)
            if not slot.probe and slot._load.breaker.is_open:
                raise self._turned_away(slot._load, spares)
        except BaseException:
            with slot:  # the place goes to the next record
                raise

    def _load_of(self, destination: Destination) -> _Load:
        """Return the load of a destination that holds no units. A new load is stored only when it takes units."""
        load = self._idle.get(destination)
        return load or _Load(destination, Breaker(self._settings), self._most, destination in self._answering)

    def _enter(self, load: _Load, units: int, spares: bool) -> bool | None:
        """Take a place, and return True if the attempt is the breaker's probe; None if the record has to wait.

        Raises TurnedAway.
        """
        breaker, now = load.breaker, 0.0
        if breaker.is_open:
            now = self._clock.monotonic()
            is_late = breaker.patience(now) > self._settings.destination_wait_seconds
            if is_late or breaker.state(now) is BreakerState.OPEN:
                raise self._turned_away(load, spares)
        if not self._has_room(load):
            raise self._busy(load)
        is_probe = breaker.is_open and not (spares and now < load.others_until) and breaker.take_probe(now)
        if not is_probe and (breaker.is_open or load.running >= load.allowed):
            return None
        self._hold(load, units)
        load.running += 1
        return is_probe

    def _turned_away(self, load: _Load, spares: bool) -> TurnedAway:
        """Return the error for a record that gets no place; if it may make a probe later, expect it back."""
        now, breaker = self._clock.monotonic(), load.breaker
        if not breaker.is_open:
            return self._busy(load)
        if not spares:
            load.others_until = now + breaker.patience(now) + _OTHERS_SECONDS
        return OriginLeftAlone(breaker.patience(now), dead=breaker.is_dead(now))

    def _busy(self, load: _Load) -> DestinationBusy:
        """Return the error with the estimated seconds until the record's turn.

        If the tenant holds no units, the time is unknown, and the error has 0.
        """
        share = self._shares.get(load.key[0])
        if share is None:
            return DestinationBusy(0.0)
        holder = load if load.held else share
        holder.crowd = holder.crowd or QueueEstimate()
        return DestinationBusy(holder.crowd.turn_away(self._clock.monotonic()))

    def _has_room(self, load: _Load) -> bool:
        """True if the thresholds allow the destination one more record."""
        share = self._shares.get(load.key[0], _NOTHING)
        left = _TENANT_FACTOR * (self._settings.window_records - self._held) - share.held
        if not load.answers:
            left -= share.strangers
        return left > 0 and (load.held < left or load.held == 0)

    def _hold(self, load: _Load, units: int) -> None:
        """Add these units to the units that the destination holds."""
        if load.held == 0:
            self._idle.pop(load.key)
            self._answering.pop(load.key)
            self._loads[load.key] = load
            load.share = self._shares.setdefault(load.key[0], _Share())
        self._held += units
        load.held += units
        load.share.held += units
        if not load.answers:
            load.share.strangers += units

    def _let_go(self, load: _Load, units: int) -> None:
        """Subtract these units from the units that the destination holds."""
        self._held -= units
        load.held -= units
        load.share.held -= units
        if not load.answers:
            load.share.strangers -= units
        if load.share.held == 0:
            del self._shares[load.key[0]]
        if load.held == 0:
            del self._loads[load.key]
            load.crowd = None
            if not (load.breaker.pristine and load.allowed == self._most):
                self._idle.put(load.key, load)
            if load.answers:
                self._answering.put(load.key, None)

    async def _queue_up(self, load: _Load, units: int, spares: bool) -> None:
        """Wait until `_leave` gives this record a place, so that a newer record cannot take the place.

        While the breaker is half-open, the record waits for the probe's outcome. Raises TurnedAway.
        """
        if len(load.waiting) >= self._settings.destination_queue_records:
            raise self._turned_away(load, spares)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        load.waiting.append(place)
        self._hold(load, units)
        try:
            async with asyncio.timeout(self._settings.destination_wait_seconds):
                await place
        except BaseException as error:
            if _was_given(place):
                # The place was granted at the moment when the wait ended, so the next record gets the place.
                self._leave(load, units)
            else:
                self._let_go(load, units)
                with suppress(ValueError):  # `_leave` or `_turn_away` may have removed the place
                    load.waiting.remove(place)
            if isinstance(error, TimeoutError | TurnedAway):
                raise self._turned_away(load, spares) from None
            raise

    def _leave(self, load: _Load, units: int) -> None:
        """Give a place back, and grant free places up to the limit to waiting records, the oldest first."""
        load.running -= 1
        if load.crowd is not None:
            load.crowd.serve(self._clock.monotonic(), self._weight(load))
        if load.share.crowd is not None:
            load.share.crowd.serve(self._clock.monotonic())
        self._let_go(load, units)
        while load.waiting and load.running < load.allowed and not load.breaker.is_open:
            place = load.waiting.popleft()
            if not place.done():
                place.set_result(None)
                load.running += 1

    def _weight(self, load: _Load) -> float:
        """Return the weight of one finished attempt in the estimate of the queue: above 1 while the limit is growing.

        The estimate of the queue assumes the full limit. Each answer raises the limit by one, so a growing limit
        doubles in the time of an attempt. The finished attempt therefore ran under half of the present limit. Under the
        full limit, `2 * most / allowed` attempts would have finished instead of one.
        """
        return 1.0 if load.allowed == self._most else 2 * self._most / load.allowed

    # -- learning from attempts ------------------------------------------------------------------------------------

    def _end(self, load: _Load, units: int, outcome: PostOutcome | None, *, probe: bool) -> None:
        """Learn from an attempt that has ended, and give its place back."""
        if outcome is not None:
            is_well = load.answers and load.allowed == self._most and load.breaker.confident
            if not (is_well and isinstance(outcome, Delivered)):  # usually, nothing changes
                self._learn(load, outcome, probe)
        elif probe:
            load.breaker.give_back_probe()
        self._leave(load, units)

    def _learn(self, load: _Load, outcome: PostOutcome, probe: bool) -> None:
        now, verdict = self._clock.monotonic(), signal_of(outcome)
        before = load.breaker.state(now)
        load.breaker.judge(
            verdict, now, probe=probe, wait_seconds=asked_to_wait(outcome), took_seconds=outcome.duration_seconds
        )
        self._adjust(load, outcome, verdict)
        if verdict is not OriginSignal.NOTHING and load.answers != (verdict is OriginSignal.ANSWERS):
            load.answers = verdict is OriginSignal.ANSWERS
            load.share.strangers += -load.held if load.answers else load.held
        after = load.breaker.state(now)
        if after is BreakerState.OPEN and before is not BreakerState.OPEN:
            self._turn_away(load)
        if after is not before:
            self._on_change(load.key, after, load.breaker.seconds_left(now))

    def _adjust(self, load: _Load, outcome: PostOutcome, verdict: OriginSignal) -> None:
        """Halve the limit on simultaneous attempts if the origin throttles; raise the limit by one for each answer."""
        if verdict is OriginSignal.ANSWERS:
            load.allowed = min(load.allowed + 1, self._most)
        elif isinstance(outcome, FailedDelivery) and outcome.reason is FailureReason.THROTTLED:
            load.allowed = max(1, load.allowed // 2)

    def _turn_away(self, load: _Load) -> None:
        """End all waits, because the breaker has opened. When the breaker closes, attempts begin one at a time."""
        load.allowed = 1
        for place in load.waiting:
            if not place.done():
                place.set_exception(TurnedAway())
        load.waiting.clear()


def _was_given(place: asyncio.Future[None]) -> bool:
    """True if the place was granted: the future is done, and was neither cancelled nor failed."""
    return place.done() and not place.cancelled() and place.exception() is None
