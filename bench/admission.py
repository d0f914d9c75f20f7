"""Compares an adaptive queue in front of an engine with fixed queues, in simulated time: `python -m bench.admission`.

The engine is simulated: it has a number of places, and each request takes a place for a drawn time. The worker's own
`EnginePace` looks at the engine every 5 to 50 ms, as in the rounds of the stage, and decides how many jobs to hand
over. The engine gets a job some milliseconds after `EnginePace` has handed the job over.

Some engines run in steps, as vLLM does, and count their requests after each step. The worker's own `Places`
learns from the counts how many requests run at once. In two of these engines, the KV cache holds fewer requests than
`max_num_seqs`; the third has several data-parallel ranks, each with `max_num_seqs`.

*Busy* is the share of places that are occupied while jobs are left. *Wait* is the time from a job's arrival in the
engine's queue to its start. A more urgent job would wait as long if it arrived right behind that job.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.result import parsed, table, title, verdict
from telemetry.hand_clock import HandClock
from workers.engines.base import EngineLoad
from workers.engines.places import Places
from workers.inference.pace import EnginePace

FIXED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FORMER = 256
"""The queue's default length in earlier versions, in which it was fixed."""
SECONDS = 300.0
WARM_SECONDS = 60.0
LOOK_SECONDS = (0.005, 0.05)
PREPARE_SECONDS = (0.001, 0.005)
STEP_SECONDS = (0.02, 0.03)

Draw = Callable[[random.Random], float]


@dataclass(slots=True)
class Run:
    """The outcome of one simulated run."""

    busy: float
    """Share of the places that were occupied, from 0 to 1."""
    wait_seconds: float
    """Mean time in the engine's queue."""


@dataclass(slots=True)
class SimulatedEngine:
    """A simulated engine: its places, the end time of each request in a place, and the queue before the places."""

    places: int
    draw: Draw
    chance: random.Random
    ends: list[float] = field(default_factory=list)
    queue: deque[float] = field(default_factory=deque)
    waits: list[float] = field(default_factory=list)

    @property
    def running(self) -> int:
        """The number of occupied places."""
        return len(self.ends)

    @property
    def next_at(self) -> float:
        """The time of the next event; infinity if there is none."""
        return self.ends[0] if self.ends else math.inf

    def load(self) -> EngineLoad:
        """Return the present load."""
        return EngineLoad(self.running, waiting=len(self.queue), free=self.places - self.running)

    def arrive(self, now: float) -> None:
        """Queue one request."""
        self.queue.append(now)
        self.start(now)

    def happen(self, now: float) -> int:
        """End one request, and start the next. Return the number of answers."""
        heapq.heappop(self.ends)
        self.start(now)
        return 1

    def start(self, now: float) -> None:
        """Give free places to waiting requests."""
        while self.queue and len(self.ends) < self.places:
            self.waits.append(now - self.queue.popleft())
            heapq.heappush(self.ends, now + self.draw(self.chance))


class SteppingEngine:
    """A simulated vLLM, whose ranks start and end requests only between two steps. `Places` learns from their counts.

    Each rank takes up to `max_num_seqs` requests, but its KV cache has room for only `held` of them. A new request goes
    to the rank with the fewest requests.
    """

    def __init__(self, ranks: int, max_num_seqs: int, held: int, draw: Draw, chance: random.Random) -> None:
        self.places, self.waits = ranks * held, list[float]()
        self._chance = chance
        self._ranks = [SimulatedEngine(held, draw, chance, waits=self.waits) for _ in range(ranks)]
        self._steps = [(chance.uniform(*STEP_SECONDS), rank) for rank in range(ranks)]
        self._learnt = Places(None)
        self._learnt.loaded(max_num_seqs, range(ranks))
        self._left = [0] * ranks
        """Number of requests that each rank's last step left waiting; the next step counts newer requests."""
        self._count = 0

    @property
    def running(self) -> int:
        """The number of occupied places."""
        return sum(rank.running for rank in self._ranks)

    @property
    def next_at(self) -> float:
        """The end of the next step."""
        return self._steps[0][0]

    def load(self) -> EngineLoad:
        """Return the load as `VllmEngine.load` does: from the count of open requests, and the places learnt so far."""
        running = min(self._count, self._learnt.number)
        return EngineLoad(running, waiting=self._count - running, free=self._learnt.number - running)

    def arrive(self, now: float) -> None:
        """Queue one request at the rank with the fewest requests. The request starts when a step of the rank ends."""
        self._count += 1
        min(self._ranks, key=lambda rank: rank.running + len(rank.queue)).queue.append(now)

    def happen(self, now: float) -> int:
        """End one step of a rank: end and count its requests, then start waiting ones. Return the number of answers."""
        number = self._steps[0][1]
        heapq.heapreplace(self._steps, (now + self._chance.uniform(*STEP_SECONDS), number))
        rank, answers = self._ranks[number], 0
        while rank.ends and rank.ends[0] <= now:
            heapq.heappop(rank.ends)
            answers += 1
        self._learnt.counted(number, rank.running, self._left[number])
        self._learnt.answered(answers)
        self._count -= answers
        rank.start(now)
        self._left[number] = len(rank.queue)
        return answers


def _plain(places: int, draw: Draw) -> Callable[[random.Random], SimulatedEngine]:
    return lambda chance: SimulatedEngine(places, draw, chance)


def _stepping(ranks: int, held: int, draw: Draw) -> Callable[[random.Random], SteppingEngine]:
    return lambda chance: SteppingEngine(ranks, 256, held, draw, chance)


ENGINES: dict[str, Callable[[random.Random], SimulatedEngine | SteppingEngine]] = {
    "64 places, 2 s each time": _plain(64, lambda chance: 2.0),
    "64 places, 0.5 to 8 s": _plain(64, lambda chance: min(8.0, 0.5 + chance.expovariate(1 / 1.5))),
    "256 places, about 4 s": _plain(256, lambda chance: chance.lognormvariate(1.2, 0.6)),
    "256 places, 0.2 s": _plain(256, lambda chance: chance.uniform(0.15, 0.25)),
    "4 places, about 10 s": _plain(4, lambda chance: chance.lognormvariate(2.2, 0.4)),
    "256 places, KV cache for 64, 2 s each time": _stepping(1, 64, lambda chance: 2.0),
    "256 places, KV cache for 64, 0.5 to 8 s": _stepping(
        1, 64, lambda chance: min(8.0, 0.5 + chance.expovariate(1 / 1.5))
    ),
    "8 ranks of 256 places, about 4 s": _stepping(8, 256, lambda chance: chance.lognormvariate(1.2, 0.6)),
}


class Simulation:
    """A simulation of one engine, its pace and an endless supply of jobs. If `fixed` is None, the queue adapts."""

    def __init__(self, engine: str, fixed: int | None) -> None:
        self._chance = random.Random(7)
        self._clock = HandClock(0.0)
        self._engine = ENGINES[engine](self._chance)
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
            now = min(self._look_at, self._engine.next_at, *self._arriving[:1], end)
            self._occupied += (now - self._clock.now) * self._engine.running
            self._clock.now = now
            if now >= end:
                return
            self._happen(now)

    def _happen(self, now: float) -> None:
        """Simulate the next event: a request ends, a job reaches the engine, or the worker looks at the engine."""
        if self._engine.next_at <= now:
            for _ in range(self._engine.happen(now)):
                self._pace.answered(0.0)
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
    parsed(argparse.ArgumentParser(description=__doc__))
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
