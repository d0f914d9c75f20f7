"""Who may call which origin now, so that a slow or dead one does not hold the process's window against all others.

A destination is a (tenant, origin). Four things decide whether an attempt may start:

    its breaker       an origin that does not answer is left alone, but for one probe at a time (breaker.py)
    its places        so many attempts run at once; a 429, 502 or 504 halves the number, each answer adds one again
    its queue         so many records wait briefly for a place
    what is left      of the window, by dynamic thresholds (Choudhury and Hahne 1998):
                      a tenant may have twice what is left of the window: alone two thirds of it, and of m tenants that
                      hang, with however many origins, each leaves the others at least a third of what it found;
                      an origin may have no more than is left to its tenant, but for its first record: alone half the
                      window, and n that hang share what their tenant may have;
                      strangers, which are a tenant's origins whose last attempt was not answered, may together have
                      no more than is left to their tenant: alone half the window, and a sixth is for those that answer;
                      and one of them no more than is left to all of them: alone two fifths of the window, so that
                      another that nobody has called yet finds room to show that it answers

The window is counted in units: a record is one, and a large one is as many as it takes for all records together to have
no more than half of the bytes that the stage may take. The other half is for what is parked or waits to be settled, so
that large records of hung origins never stop the stage from fetching.

What may not start now is `TurnedAway`: it is deferred at once to a tier. Local to each process; a lock is not needed,
since all of it runs on one event loop.
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
from workers.delivery.queue_estimate import QueueEstimate
from workers.delivery.settings import DeliverySettings
from workers.delivery.tenant_lru import TenantLru
from workers.system.memory_limit import LARGEST_WINDOW

Destination = tuple[str, str]
"""Tenant and origin."""

_REMEMBERED = 10_000
"""Idle destinations whose failures are remembered, and as many that answered; beyond that one is forgotten, of the
tenant that has most."""
_TENANT_FACTOR = 2
"""How many times what is left of the window a tenant may have."""


class TurnedAway(Exception):  # noqa: N818 - it names what happened
    """No attempt may start now."""


class DestinationBusy(TurnedAway):
    """The destination has its share of this process."""

    def __init__(self, turn_seconds: float) -> None:
        super().__init__()
        self.turn_seconds = turn_seconds
        """How long it takes for all that were turned away lately, this one being the last; 0 if unknown."""


class OriginLeftAlone(TurnedAway):
    """The destination's breaker lets nobody through for the time being."""

    def __init__(self, wait_seconds: float, *, dead: bool) -> None:
        super().__init__()
        self.wait_seconds = wait_seconds
        """How long one does well to wait before one asks again."""
        self.dead = dead
        """Whether it fails whenever it is tried, and has not merely asked to be left alone."""


@dataclass(slots=True)
class _Share:
    """What a tenant has of the window, in units."""

    held: int = 0
    strangers: int = 0
    """Of those: what its origins have whose last attempt was not answered."""
    crowd: QueueEstimate = field(default_factory=QueueEstimate)
    """Of its origins that have nothing and get nothing."""


_NOTHING = _Share()


@dataclass(slots=True)
class _Load:
    """What a destination has of this process, and what is known of its origin."""

    breaker: Breaker
    allowed: int
    """Attempts at once, now."""
    answers: bool
    """Whether its last attempt was answered. Where it was not, or there was none, it is a stranger."""
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    held: int = 0
    """Units of the window: what runs, what waits, and what was told to go and has not gone yet."""
    crowd: QueueEstimate = field(default_factory=QueueEstimate)


@dataclass(slots=True)
class AttemptSlot:
    """The right to make one attempt, given back by `with`. `outcome` stays None where our side cut the attempt off."""

    _destinations: Destinations
    _destination: Destination
    _load: _Load
    _units: int
    probe: bool
    """Whether it is the one attempt that a half-open breaker lets through."""
    outcome: PostOutcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._destinations._learn(self._destination, self._load, self)
        self._destinations._leave(self._destination, self._load, self._units)


class Destinations:
    """Gives out places. `on_change` hears of a destination whose breaker changes, with its new state and for how long.

    Remembers a destination only while something runs for it or has failed lately, and the names of those that answered.
    """

    def __init__(
        self,
        settings: DeliverySettings,
        clock: Clock,
        on_change: Callable[[Destination, BreakerState, float], None] = lambda destination, state, seconds: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_change = on_change
        self._loads: dict[Destination, _Load] = {}
        """Of those that hold something of the window, by which they are bounded."""
        self._idle = TenantLru[_Load](_REMEMBERED)
        """Of those that hold nothing and have failed lately."""
        self._answering = TenantLru[None](_REMEMBERED)
        self._shares: dict[str, _Share] = {}
        """Of the tenants that have something."""
        self._held = 0
        self._unit_bytes = max(1, (settings.window_bytes or LARGEST_WINDOW) // 2 // settings.window_records)

    def __len__(self) -> int:
        """Of how many destinations something is known."""
        return len(self._loads) + len(self._idle)

    @property
    def held(self) -> int:
        """How much of the window all destinations have together, in units."""
        return self._held

    async def place(self, destination: Destination, size: int) -> AttemptSlot:
        """One of the destination's places, to be entered at once. Raises TurnedAway when none is, or gets, free.

        `size` is the record's, in bytes. The holder says what its attempt has shown by setting the place's outcome.
        """
        load, units = self._load_of(destination), 1 + size // self._unit_bytes
        return AttemptSlot(self, destination, load, units, await self._enter(destination, load, units))

    def _load_of(self, destination: Destination) -> _Load:
        """What is known of it, or a new one: it is kept once it holds something, not for who is turned away."""
        load = self._loads.get(destination) or self._idle.get(destination)
        if load is None:
            breaker, answers = Breaker(self._settings), destination in self._answering
            load = _Load(breaker, self._settings.destination_concurrency, answers)
        return load

    async def _enter(self, destination: Destination, load: _Load, units: int) -> bool:
        """Take a place; whether it is a probe's."""
        now = self._clock.monotonic()
        if load.breaker.leaves_alone(now):
            raise OriginLeftAlone(load.breaker.patience(now), dead=load.breaker.is_dead(now))
        if not self._has_room(destination, load):
            raise self._busy(destination, load)
        if load.breaker.state(now) is BreakerState.CLOSED and load.running >= load.allowed:
            await self._queue_up(destination, load, units)
            return False
        self._hold(destination, load, units)
        load.running += 1
        return load.breaker.take_probe(now)

    def _busy(self, destination: Destination, load: _Load) -> DestinationBusy:
        """Its turn comes as others of the destination end, or of its tenant; where there are none, nobody knows."""
        share = self._shares.get(destination[0])
        if share is None:
            return DestinationBusy(0.0)
        crowd = load.crowd if load.held else share.crowd
        return DestinationBusy(crowd.turn_away(self._clock.monotonic()))

    def _has_room(self, destination: Destination, load: _Load) -> bool:
        """Whether the thresholds let the destination have one record more."""
        share = self._shares.get(destination[0], _NOTHING)
        left = _TENANT_FACTOR * (self._settings.window_records - self._held) - share.held
        if not load.answers:
            left -= share.strangers
        return left > 0 and (load.held < left or load.held == 0)

    def _hold(self, destination: Destination, load: _Load, units: int) -> None:
        """So much more of the window is the destination's."""
        if load.held == 0:
            self._idle.pop(destination)
            self._loads[destination] = load
        share = self._shares.get(destination[0])
        if share is None:
            share = self._shares[destination[0]] = _Share()
        self._held += units
        share.held += units
        load.held += units
        if not load.answers:
            share.strangers += units

    def _let_go(self, destination: Destination, load: _Load, units: int) -> None:
        """So much less is."""
        share = self._shares[destination[0]]
        self._held -= units
        share.held -= units
        load.held -= units
        if not load.answers:
            share.strangers -= units
        if share.held == 0:
            del self._shares[destination[0]]
        if load.held == 0:
            del self._loads[destination]
            if not (load.breaker.pristine and load.allowed == self._settings.destination_concurrency):
                self._idle.put(destination, load)

    async def _queue_up(self, destination: Destination, load: _Load, units: int) -> None:
        """Wait for a place that somebody leaves; it is then ours already, so that no newcomer takes it first."""
        if len(load.waiting) >= self._settings.destination_queue_records:
            raise self._busy(destination, load)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        load.waiting.append(place)
        self._hold(destination, load, units)
        try:
            async with asyncio.timeout(self._settings.destination_wait_seconds):
                await place
        except BaseException as error:
            if _was_given(place):
                # It became ours in the same moment as we were told to go: the next one has it.
                self._leave(destination, load, units)
            else:
                self._let_go(destination, load, units)
                with suppress(ValueError):  # whoever left meanwhile has skipped it
                    load.waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise self._busy(destination, load) from None
            raise

    def _leave(self, destination: Destination, load: _Load, units: int) -> None:
        """Give our place to the first who waits for it, and others to those who wait while more are allowed."""
        now = self._clock.monotonic()
        load.running -= 1
        load.crowd.serve(now, self._weight(load))
        self._shares[destination[0]].crowd.serve(now)
        self._let_go(destination, load, units)
        while load.waiting and load.running < load.allowed:
            place = load.waiting.popleft()
            if not place.done():
                place.set_result(None)
                load.running += 1

    def _weight(self, load: _Load) -> float:
        """How many attempts one that is over stands for, where fewer may run at once than soon will.

        Each answer lets one more run, so while an attempt runs they become twice as many: it was one of half as many.
        """
        most = self._settings.destination_concurrency
        return 1.0 if load.allowed == most else 2 * most / load.allowed

    # -- what attempts show ----------------------------------------------------------------------------------------

    def _learn(self, destination: Destination, load: _Load, place: AttemptSlot) -> None:
        if place.outcome is None:
            if place.probe:
                load.breaker.give_back_probe()
            return
        if isinstance(place.outcome, Delivered) and self._is_as_well_as_can_be(load):
            self._note(destination, load, OriginSignal.ANSWERS)
            return  # the rule: its breaker and its places have nothing to learn
        now, outcome, verdict = self._clock.monotonic(), place.outcome, signal_of(place.outcome)
        before = load.breaker.state(now)
        load.breaker.judge(
            verdict, now,
            probe=place.probe, wait_seconds=asked_to_wait(outcome), took_seconds=outcome.duration_seconds,
        )  # fmt: skip
        self._adjust(load, outcome, verdict)
        self._note(destination, load, verdict)
        after = load.breaker.state(now)
        if after is BreakerState.OPEN and before is not BreakerState.OPEN:
            self._turn_away(load, load.breaker.seconds_left(now))
        if after is not before:
            self._on_change(destination, after, load.breaker.seconds_left(now))

    def _is_as_well_as_can_be(self, load: _Load) -> bool:
        return load.answers and load.allowed == self._settings.destination_concurrency and load.breaker.confident

    def _adjust(self, load: _Load, outcome: PostOutcome, verdict: OriginSignal) -> None:
        """Fewer attempts at once where the origin says that there are too many; one more for each answer."""
        if verdict is OriginSignal.ANSWERS:
            load.allowed = min(load.allowed + 1, self._settings.destination_concurrency)
        elif isinstance(outcome, FailedDelivery) and outcome.reason is FailureReason.THROTTLED:
            load.allowed = max(1, load.allowed // 2)

    def _note(self, destination: Destination, load: _Load, verdict: OriginSignal) -> None:
        """Whether the origin is a stranger from now on; what it holds counts as a stranger's or does not."""
        if verdict is OriginSignal.NOTHING:
            return
        answers = verdict is OriginSignal.ANSWERS
        if answers:
            self._answering.put(destination, None)
        if answers != load.answers:
            load.answers = answers
            self._shares[destination[0]].strangers += -load.held if answers else load.held
            if not answers:
                self._answering.pop(destination)

    def _turn_away(self, load: _Load, seconds: float) -> None:
        """The breaker has opened: whoever waits need not, and what comes when it closes comes slowly."""
        load.allowed = 1
        for place in load.waiting:
            if not place.done():
                place.set_exception(OriginLeftAlone(seconds, dead=False))
        load.waiting.clear()


def _was_given(place: asyncio.Future[None]) -> bool:
    """Whether whoever waits for it has it: nobody has told it to go, and it has not gone."""
    return place.done() and not place.cancelled() and place.exception() is None
