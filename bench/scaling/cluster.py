"""A simulated fleet: workers that start, answer several jobs at once and drain, and an autoscaler beside them.

The autoscaler is Kubernetes' HorizontalPodAutoscaler as the chart configures it. The autoscaler scales up at once. The
autoscaler scales down by one pod a minute, to the largest number that was wanted in the stabilisation window.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.scaling.traces import SimulatedJob
from cli.operations.exporter.replicas import Hysteresis, WaitingJobs
from workers.inference.observed import AnswerTimes

PARTITIONS = 16
WORKER_JOBS = 8
"""Jobs that one worker answers at once."""
BULK_EVERY = 10
"""While both lanes have jobs, one of this many freed places goes to the bulk lane."""
POLL_SECONDS = 15.0
START_SECONDS = 120.0
STABILISATION_SECONDS = 630.0
"""The time of the longest answer plus the drain. In a shorter window, a pod could be killed while it answers a job."""
DOWN_PERIOD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sight:
    """The state of the fleet that a way of scaling sees."""

    at: float
    kafka_lag: int
    """Records after the committed offsets: a running job holds up all later offsets of its partition."""
    lanes: Sequence[WaitingJobs]
    done: int
    workers: int
    """Workers that have started."""
    answers: Sequence[float]
    """The 99th percentile of the answers' times, in seconds, of each worker that has answered a job."""


Wish = Callable[[Sight], int]
"""Returns the number of workers that a way of scaling wants."""


@dataclass
class SimulatedRun:
    """The cost and the failures of one day."""

    replica_seconds: float = 0.0
    missed: set[int] = field(default_factory=set)
    """The jobs that were not answered by their deadline."""
    most_replicas: int = 0

    @property
    def replica_hours(self) -> float:
        """Hours of all workers, from their pod's start to the end of their drain."""
        return self.replica_seconds / 3600


@dataclass(eq=False)
class _Worker:
    begun: float
    busy: int = 0
    draining: bool = False
    answer_times: AnswerTimes = field(default_factory=AnswerTimes)

    def free(self, at: float) -> int:
        ready = at >= self.begun + START_SECONDS and not self.draining
        return WORKER_JOBS - self.busy if ready else 0


class Fleet:
    """Runs one trace under one way of scaling."""

    def __init__(self, jobs: Sequence[SimulatedJob], wish: Wish, max_replicas: int = PARTITIONS) -> None:
        self._jobs = jobs
        self._wish = wish
        self._max = max_replicas
        self._queues: tuple[deque[int], deque[int]] = deque(), deque()
        self._undone: tuple[dict[int, float], dict[int, float]] = {}, {}
        """The deadlines of each lane's jobs that are not done, in the order of their arrival."""
        self._next = 0
        self._ends: list[tuple[float, int, _Worker]] = []
        self._workers: list[_Worker] = []
        self._stable = Hysteresis(STABILISATION_SECONDS)
        self._down_at = 0.0
        self._taken = 0
        self._done: set[int] = set()
        self._bases = list(range(PARTITIONS))
        self.outcome = SimulatedRun()

    def run(self, seconds: float) -> SimulatedRun:
        """Run until all jobs are answered or expired, and no earlier than `seconds`."""
        at = 0.0
        while at < seconds or self._undone[0] or self._undone[1]:
            self._advance(at)
            self._scale(at)
            self._dispatch(at)
            at += POLL_SECONDS
        for worker in list(self._workers):
            self._end(worker, at)
        return self.outcome

    def _advance(self, until: float) -> None:
        """Let jobs arrive and end, in their order, up to a time."""
        while True:
            arrival = self._jobs[self._next].arrival if self._next < len(self._jobs) else float("inf")
            end = self._ends[0][0] if self._ends else float("inf")
            at = min(arrival, end)
            if at > until:
                return
            if end <= arrival:
                self._finish(*heapq.heappop(self._ends))
            else:
                job = self._jobs[self._next]
                self._queues[job.is_bulk].append(self._next)
                self._undone[job.is_bulk][self._next] = job.deadline
                self._next += 1
            self._dispatch(at)

    def _finish(self, at: float, number: int, worker: _Worker) -> None:
        job = self._jobs[number]
        if at > job.deadline:
            self.outcome.missed.add(number)
        else:
            worker.answer_times.add(job.service_seconds)
        self._settle(number)
        worker.busy -= 1
        if worker.draining and not worker.busy:
            self._end(worker, at)

    def _settle(self, number: int) -> None:
        del self._undone[self._jobs[number].is_bulk][number]
        self._done.add(number)

    def _dispatch(self, at: float) -> None:
        for worker in self._workers:
            for _ in range(worker.free(at)):
                number = self._take(at)
                if number is None:
                    return
                worker.busy += 1
                heapq.heappush(self._ends, (at + self._jobs[number].service_seconds, number, worker))

    def _take(self, at: float) -> int | None:
        """Return the number of the next job that has not expired; None if there is no such job.

        The expired jobs before that job are settled as missed, because workers end expired jobs at once.
        """
        while any(self._queues):
            self._taken += 1
            is_bulk = not self._queues[0] or (bool(self._queues[1]) and self._taken % BULK_EVERY == 0)
            number = self._queues[is_bulk].popleft()
            if self._jobs[number].deadline > at:
                return number
            self.outcome.missed.add(number)
            self._settle(number)
        return None

    def _scale(self, at: float) -> None:
        present = [worker for worker in self._workers if not worker.draining]
        wanted = min(self._max, self._stable.follow(at, min(self._max, self._wish(self._sight(at)))))
        for _ in range(wanted - len(present)):
            self._workers.append(_Worker(at))
        if wanted < len(present) and at >= self._down_at + DOWN_PERIOD_SECONDS:
            self._down_at = at
            last = present[-1]
            last.draining = True
            if not last.busy:
                self._end(last, at)
        self.outcome.most_replicas = max(self.outcome.most_replicas, len(self._workers))

    def _end(self, worker: _Worker, at: float) -> None:
        self._workers.remove(worker)
        self.outcome.replica_seconds += at - worker.begun

    def _sight(self, at: float) -> Sight:
        lanes = [WaitingJobs([deadline - at for deadline in lane.values()]) for lane in self._undone]
        ready = sum(at >= worker.begun + START_SECONDS and not worker.draining for worker in self._workers)
        answers = [seconds for worker in self._workers if (seconds := worker.answer_times.p99()) is not None]
        return Sight(at, self._lag(), lanes, len(self._done), ready, answers)

    def _lag(self) -> int:
        """Return the records after the committed offsets. Job n is in partition n modulo PARTITIONS."""
        lag = 0
        for partition, base in enumerate(self._bases):
            while base in self._done:
                base += PARTITIONS
            self._bases[partition] = base
            lag += len(range(base, self._next, PARTITIONS))
        return lag


def simulate(jobs: Sequence[SimulatedJob], wish: Wish, seconds: float) -> SimulatedRun:
    """Run a trace under a way of scaling, with at most one worker for each partition."""
    return Fleet(jobs, wish).run(seconds)
