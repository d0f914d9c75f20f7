"""Who may call which origin now, so that a slow or dead one does not hold the process's window against all others.

A destination is a (tenant, origin). Four things decide whether an attempt may start:

    its breaker       an origin that does not answer is left alone, but for one probe at a time (breaker.py)
    its places        so many attempts run at once; a 429, 502 or 504 halves the number, each answer adds one again
    its queue         so many records wait briefly for a place
    what is left      of the window: one destination may have no more of it than is free. Hung origins together can
                      therefore not fill it: n of them, each with more records than it may have, leave a share of
                      1/(n+1) to the others (dynamic thresholds, Choudhury and Hahne 1998)

What may not start now is `DestinationBusy`: it is deferred at once to a tier. Local to each process; a lock is not
needed, since all of it runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from telemetry.clock import Clock
from workers.delivery.breaker import Breaker, State, Verdict, asked_to_wait, verdict_of
from workers.delivery.post import FailedDelivery, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings

Destination = tuple[str, str]
"""Tenant and origin."""

_REMEMBERED = 10_000
"""Idle destinations whose failures are remembered; beyond that the one that was called longest ago is forgotten."""


class DestinationBusy(Exception):  # noqa: N818 - it names what happened
    """The destination has its share of this process, or is left alone for the time being."""

    def __init__(self, wait_seconds: float = 0.0) -> None:
        super().__init__()
        self.wait_seconds = wait_seconds
        """How long it does well to wait before it asks again."""


@dataclass(slots=True)
class _Load:
    """What a destination has of this process, and what is known of its origin."""

    breaker: Breaker
    allowed: int
    """Attempts at once, now."""
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    @property
    def held(self) -> int:
        """Its part of the window."""
        return self.running + len(self.waiting)


@dataclass(slots=True)
class Place:
    """The right to make one attempt, given back by `with`. `outcome` stays None where our side cut the attempt off."""

    _destinations: Destinations
    _destination: Destination
    _load: _Load
    probe: bool
    """Whether it is the one attempt that a half-open breaker lets through."""
    outcome: PostOutcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._destinations._learn(self._destination, self._load, self)
        self._destinations._leave(self._destination, self._load)


class Destinations:
    """Gives out places. `on_change` hears of a destination whose breaker changes, with its new state and for how long.

    Remembers a destination only while something runs for it or has failed lately.
    """

    def __init__(
        self,
        settings: DeliverySettings,
        clock: Clock,
        on_change: Callable[[Destination, State, float], None] = lambda destination, state, seconds: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_change = on_change
        self._loads: OrderedDict[Destination, _Load] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        """Of how many destinations something is known."""
        return len(self._loads)

    @property
    def held(self) -> int:
        """How much of the window all destinations have together."""
        return self._held

    async def place(self, destination: Destination) -> Place:
        """One of the destination's places, to be entered at once. Raises DestinationBusy when none is, or gets, free.

        The holder says what its attempt has shown by setting the place's outcome.
        """
        load = self._load_of(destination)
        return Place(self, destination, load, await self._enter(destination, load))

    def _load_of(self, destination: Destination) -> _Load:
        load = self._loads.get(destination)
        if load is None:
            load = self._loads[destination] = _Load(Breaker(self._settings), self._settings.destination_concurrency)
        self._loads.move_to_end(destination)
        return load

    async def _enter(self, destination: Destination, load: _Load) -> bool:
        """Take a place; whether it is a probe's."""
        now = self._clock.monotonic()
        if load.breaker.state(now) is not State.CLOSED:
            if not load.breaker.take_probe(now):
                raise DestinationBusy(load.breaker.patience(now))
            self._take(load)
            return True
        if load.held > 0 and load.held >= self._settings.window_records - self._held:
            raise DestinationBusy
        if load.running < load.allowed:
            self._take(load)
        else:
            await self._queue_up(destination, load)
        return False

    def _take(self, load: _Load) -> None:
        load.running += 1
        self._held += 1

    async def _queue_up(self, destination: Destination, load: _Load) -> None:
        """Wait for a place that somebody leaves; it is then ours already, so that no newcomer takes it first."""
        if len(load.waiting) >= self._settings.destination_queue_records:
            raise DestinationBusy
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        load.waiting.append(place)
        self._held += 1
        try:
            async with asyncio.timeout(self._settings.destination_wait_seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled() and place.exception() is None:
                # It became ours in the same moment as we were told to go: the next one has it.
                self._leave(destination, load)
            else:
                self._held -= 1
                with suppress(ValueError):  # whoever left meanwhile has skipped it
                    load.waiting.remove(place)
                self._forget(destination, load)
            if isinstance(error, TimeoutError):
                raise DestinationBusy from None
            raise

    def _leave(self, destination: Destination, load: _Load) -> None:
        """Give our place to the first who waits for it, and others to those who wait while more are allowed."""
        load.running -= 1
        self._held -= 1
        while load.waiting and load.running < load.allowed:
            place = load.waiting.popleft()
            if not place.done():
                place.set_result(None)
                load.running += 1
        self._forget(destination, load)

    def _forget(self, destination: Destination, load: _Load) -> None:
        """Drop what need not be remembered: a destination without failures, or too many of those that have some."""
        if load.held == 0 and load.breaker.pristine and load.allowed == self._settings.destination_concurrency:
            self._loads.pop(destination, None)
        if len(self._loads) > _REMEMBERED:
            oldest = next(iter(self._loads))
            if self._loads[oldest].held == 0:
                del self._loads[oldest]

    # -- what attempts show ----------------------------------------------------------------------------------------

    def _learn(self, destination: Destination, load: _Load, place: Place) -> None:
        if place.outcome is None:
            if place.probe:
                load.breaker.give_back_probe()
            return
        now, verdict = self._clock.monotonic(), verdict_of(place.outcome)
        before = load.breaker.state(now)
        load.breaker.judge(verdict, now, probe=place.probe, wait_seconds=asked_to_wait(place.outcome))
        self._adjust(load, place.outcome, verdict)
        after = load.breaker.state(now)
        if after is State.OPEN and before is not State.OPEN:
            self._turn_away(load, load.breaker.seconds_left(now))
        if after is not before:
            self._on_change(destination, after, load.breaker.seconds_left(now))

    def _adjust(self, load: _Load, outcome: PostOutcome, verdict: Verdict) -> None:
        """Fewer attempts at once where the origin says that there are too many; one more for each answer."""
        if verdict is Verdict.ANSWERS:
            load.allowed = min(load.allowed + 1, self._settings.destination_concurrency)
        elif isinstance(outcome, FailedDelivery) and outcome.reason is FailureReason.THROTTLED:
            load.allowed = max(1, load.allowed // 2)

    def _turn_away(self, load: _Load, seconds: float) -> None:
        """The breaker has opened: whoever waits need not, and what comes when it closes comes slowly."""
        load.allowed = 1
        for place in load.waiting:
            if not place.done():
                place.set_exception(DestinationBusy(seconds))
        load.waiting.clear()
