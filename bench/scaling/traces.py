"""Traces of jobs: arrival, time at a worker, deadline and lane. The same name always gives the same trace."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

DAY_SECONDS = 86_400.0
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """One job of a trace. Times are in seconds from the trace's start."""

    arrival: float
    service_seconds: float
    """Time that the job takes at a worker, beside the worker's other jobs."""
    deadline: float
    is_bulk: bool = False
    """True for a job of the bulk lane."""


def _arrivals(chance: random.Random, seconds: float, rate: Callable[[float], float], most: float) -> Iterator[float]:
    """Yield a Poisson process whose rate changes, by thinning (Lewis and Shedler 1979)."""
    at = 0.0
    while (at := at + chance.expovariate(most)) < seconds:
        if chance.random() < rate(at) / most:
            yield at


def _answer_seconds(chance: random.Random, mean: float = 20.0) -> float:
    """Return a log-normal time with many short and few long answers, at most 15 times the mean."""
    sigma = 0.8
    return min(15 * mean, chance.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))


def _steady(chance: random.Random, seconds: float) -> Iterator[SimulatedJob]:
    for at in _arrivals(chance, seconds, lambda _: 1.2, 1.2):
        yield SimulatedJob(at, _answer_seconds(chance), at + _HOUR)


def _daily_wave(chance: random.Random, seconds: float) -> Iterator[SimulatedJob]:
    def rate(at: float) -> float:
        return 1.1 * (1 - 0.9 * math.cos(2 * math.pi * at / seconds))

    for at in _arrivals(chance, seconds, rate, 2.1):
        yield SimulatedJob(at, _answer_seconds(chance), at + _HOUR)


def _bursts(chance: random.Random, seconds: float) -> Iterator[SimulatedJob]:
    """Two hundred jobs arrive within a minute, every 40 minutes, beside a trickle of single jobs."""
    for at in _arrivals(chance, seconds, lambda at: 3.3 if at % 2400 < 60 else 0.05, 3.3):
        yield SimulatedJob(at, _answer_seconds(chance), at + 2 * _HOUR)


def _floods(chance: random.Random, seconds: float) -> Iterator[SimulatedJob]:
    """Batches of up to 9,000 bulk jobs come, which are due in hours, beside jobs that are due in 20 minutes."""
    jobs = [
        SimulatedJob(at, _answer_seconds(chance), at + 1200) for at in _arrivals(chance, seconds, lambda _: 0.2, 0.2)
    ]
    for start, count, hours in ((0.04, 9000, 12.0), (0.35, 5000, 8.0), (0.55, 3000, 2.0), (0.6, 5000, 8.0)):
        at = start * seconds
        jobs += [
            SimulatedJob(at + n * 0.01, _answer_seconds(chance), at + hours * _HOUR * seconds / DAY_SECONDS, True)
            for n in range(round(count * seconds / DAY_SECONDS))
        ]
    yield from sorted(jobs, key=lambda job: job.arrival)


def _slow_head(chance: random.Random, seconds: float) -> Iterator[SimulatedJob]:
    """One job in two hundred takes ten minutes, and holds up the committed offset of its partition."""
    for at in _arrivals(chance, seconds, lambda _: 1.5, 1.5):
        slow = chance.random() < 0.005
        yield SimulatedJob(at, 600.0 if slow else _answer_seconds(chance, 8.0), at + _HOUR)


def _rush(chance: random.Random, seconds: float) -> Iterator[SimulatedJob]:
    """An hour in which more jobs arrive than the largest fleet can answer, after an hour without jobs."""

    def rate(at: float) -> float:
        part = at / seconds
        if 0.5 <= part < 0.5 + 1 / 24:
            return 8.0
        return 0.0 if 0.46 <= part < 0.5 else 0.4

    for at in _arrivals(chance, seconds, rate, 8.0):
        yield SimulatedJob(at, _answer_seconds(chance), at + 2 * _HOUR)


def _slow_model(chance: random.Random, seconds: float) -> Iterator[SimulatedJob]:
    """Jobs are due in 30 minutes and take 160 s, so a worker answers a twentieth of the assumed jobs per second."""
    for at in _arrivals(chance, seconds, lambda _: 0.3, 0.3):
        yield SimulatedJob(at, _answer_seconds(chance, 160.0), at + 1800)


_TRACES = {
    "steady": _steady,
    "daily wave": _daily_wave,
    "bursts": _bursts,
    "batch floods": _floods,
    "slow head": _slow_head,
    "rush": _rush,
    "slow model": _slow_model,
}
NAMES = tuple(_TRACES)


def trace(name: str, seconds: float = DAY_SECONDS) -> list[SimulatedJob]:
    """Return a trace's jobs in the order of their arrival."""
    return list(_TRACES[name](random.Random(name), seconds))
