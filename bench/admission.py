"""Compares the adaptive queue before an engine with fixed ones, in simulated time: `python -m bench.admission`.

The engine is simulated: it has a number of places, and each request takes a place for a drawn time. The worker's own
`EnginePace` decides how many jobs are handed over at each look. Looks are 5 to 50 ms apart, like the rounds of the
stage, and a job arrives some milliseconds after its look.

*Busy* is the share of places that are occupied while jobs are left. *Wait* is the time from a job's arrival in the
engine to its start: a newer and more urgent job would wait behind it.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.table import table, title, verdict
from telemetry.hand_clock import HandClock
from workers.engines.base import EngineLoad
from workers.inference.pace import EnginePace

FIXED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FORMER = 256
"""The former default length of the queue, which was fixed."""
SECONDS = 300.0
WARM_SECONDS = 60.0
LOOK_SECONDS = (0.005, 0.05)
PREPARE_SECONDS = (0.001, 0.005)

Draw = Callable[[random.Random], float]
ENGINES: dict[str, tuple[int, Draw]] = {
    "64 places, 2 s each time": (64, lambda chance: 2.0),
    "64 places, 0.5 to 8 s": (64, lambda chance: min(8.0, 0.5 + chance.expovariate(1 / 1.5))),
    "256 places, about 4 s": (256, lambda chance: chance.lognormvariate(1.2, 0.6)),
    "256 places, 0.2 s": (256, lambda chance: chance.uniform(0.15, 0.25)),
    "4 places, about 10 s": (4, lambda chance: chance.lognormvariate(2.2, 0.4)),
}


@dataclass(slots=True)
class Run:
    """The outcome of one simulated run."""

    busy: float
    """Share of the places that were occupied, from 0 to 1."""
    wait_seconds: float
    """Mean time in the engine's queue."""


@dataclass(slots=True)
class SimulatedEngine:
    """Places, the ends of the requests in them, and the queue before them."""

    places: int
    draw: Draw
    chance: random.Random
    ends: list[float] = field(default_factory=list)
    queue: deque[float] = field(default_factory=deque)
    waits: list[float] = field(default_factory=list)

    def load(self) -> EngineLoad:
        """Return the present load."""
        running = len(self.ends)
        return EngineLoad(running=running, waiting=len(self.queue), free=self.places - running)

    def arrive(self, now: float) -> None:
        """Queue one request."""
        self.queue.append(now)
        self.start(now)

    def start(self, now: float) -> None:
        """Give free places to waiting requests."""
        while self.queue and len(self.ends) < self.places:
            self.waits.append(now - self.queue.popleft())
            heapq.heappush(self.ends, now + self.draw(self.chance))


class Simulation:
    """One engine, its pace, and an endless supply of jobs, in simulated time. `fixed` None is the adaptive queue."""

    def __init__(self, engine: str, fixed: int | None) -> None:
        places, draw = ENGINES[engine]
        self._chance = random.Random(7)
        self._clock = HandClock(0.0)
        self._engine = SimulatedEngine(places, draw, self._chance)
        self._pace = EnginePace(self._engine.load, fixed, self._clock)
        self._look_at = 0.0
        self._arriving: list[float] = []
        self._preparing: list[ExitStack] = []
        self._occupied = 0.0

    def run(self, seconds: float, warm_seconds: float) -> Run:
        """Simulate `seconds`, of which the first `warm_seconds` do not count."""
        self._until(warm_seconds)
        self._engine.waits.clear()
        self._occupied = 0.0
        self._until(seconds)
        waits, places = self._engine.waits, self._engine.places
        return Run(self._occupied / (places * (seconds - warm_seconds)), sum(waits) / max(1, len(waits)))

    def _until(self, end: float) -> None:
        while True:
            now = min(self._look_at, *self._engine.ends[:1], *self._arriving[:1], end)
            self._occupied += (now - self._clock.now) * len(self._engine.ends)
            self._clock.now = now
            if now >= end:
                return
            self._happen(now)

    def _happen(self, now: float) -> None:
        """Let a request end, a job arrive, or the worker look at the engine."""
        if self._engine.ends and self._engine.ends[0] <= now:
            heapq.heappop(self._engine.ends)
            self._pace.answered(0.0)
            self._engine.start(now)
        elif self._arriving and self._arriving[0] <= now:
            heapq.heappop(self._arriving)
            self._preparing.pop().close()
            self._engine.arrive(now)
        else:
            for _ in range(self._pace.room()):
                self._preparing.append(ExitStack())
                self._preparing[-1].enter_context(self._pace.preparing())
                heapq.heappush(self._arriving, now + self._chance.uniform(*PREPARE_SECONDS))
            self._look_at = now + self._chance.uniform(*LOOK_SECONDS)


def main() -> None:
    """Print each engine's busy share and wait with the adaptive queue and with the fixed ones."""
    title("The queue before the engine, simulated")
    shares, waits = [], []
    for engine in ENGINES:
        fixed = {number: Simulation(engine, number).run(SECONDS, WARM_SECONDS) for number in FIXED}
        adaptive = Simulation(engine, None).run(SECONDS, WARM_SECONDS)
        best = max(run.busy for run in fixed.values())
        rows = [("adaptive", adaptive), *((str(number), run) for number, run in fixed.items())]
        print(f"\n{engine}")
        table(("queue", "busy", "wait"), [(name, f"{run.busy:.3f}", f"{run.wait_seconds:.3f} s") for name, run in rows])
        shares.append(adaptive.busy / best)
        waits.append(adaptive.wait_seconds / fixed[FORMER].wait_seconds)
    verdict("least share of the best fixed queue's busy places", min(shares), 0.97, at_least=True)
    verdict(f"largest share of the wait with {FORMER} waiting", max(waits), 0.1, at_least=False)


if __name__ == "__main__":
    main()
