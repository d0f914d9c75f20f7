"""Measures the engine's idle time while jobs wait for slow pages: `python -m bench.overlap`.

The engine has a known rate, given by its number of places and the time for each answer, and counts its idle time. The
parts of `postback worker` run around this engine, with a real Kafka and a real site whose pages take 1 to 3 s. The
bench measures three runs: jobs without sources, jobs with a slow page each, and the same jobs with a window of only as
many jobs as the engine has places. With that window, each job that waits for its page leaves one of the engine's places
idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop

from bench.committed import committed_records
from bench.fleet import Kafka, assert_exactly_once, broker, new_fleet, prefill, value_of
from bench.result import parsed, table, title, verdict
from bench.slow_site import slow_site
from schemas.codec import read_result
from schemas.settings import FleetSettings
from workers.engines.base import Completion, Engine, EngineLoad, GenerationRequest
from workers.roles.process import Process
from workers.roles.worker import inference_stage

IDLE_TARGET = 0.02
RATE_TARGET = 0.9
PARTITIONS = 4
BUDGET_SECONDS = 20.0
"""Time budget of a job's sources. It is so long that even on a loaded machine no page is left out for being late."""
SETTLED = "postback_settled_records_total"
LOOK_SECONDS = 0.05

PageOf = Callable[[int], str]


class KnownEngine(Engine):
    """An `Engine` that generates `places` answers at once, in `seconds` each, and counts its idle time."""

    name = "known"

    def __init__(self, places: int, seconds: float) -> None:
        self.places = places
        self._seconds = seconds
        self._places = places
        self._free = asyncio.Semaphore(places)
        self._waiting = 0
        self._running = 0
        self._since = 0.0
        self.began = 0.0
        """Monotonic seconds at the start of the first answer; 0 before it."""
        self.ended = 0.0
        """Monotonic seconds at the end of the last answer."""
        self.idle_seconds = 0.0
        self.busy_seconds = 0.0
        """Busy seconds, summed over all places."""
        self.begun: list[float] = []
        """Monotonic seconds at the start of each answer."""

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer when a place is free."""
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        self._changed(1)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self._changed(-1)
            self._free.release()
        return Completion("Ingrid Solvang was the judge. [1]", "stop", 32, 32, 0.5)

    def load(self) -> EngineLoad:
        """Return the number of requests in progress, and the number that wait for a place."""
        return EngineLoad(running=self._running, waiting=self._waiting, free=self._places - self._running)

    def _changed(self, by: int) -> None:
        now = time.monotonic()
        if not self.began:
            self.began = self._since = now
        self.idle_seconds += (now - self._since) * (self._running == 0)
        self.busy_seconds += (now - self._since) * self._running
        self._running += by
        self._since = self.ended = now
        if by > 0:
            self.begun.append(now)


@dataclass(frozen=True, slots=True)
class Side:
    """One run's jobs and window."""

    name: str
    jobs: int
    page_of: PageOf | None = None
    window: int | None = None
    """POSTBACK_WORKER__WINDOW_RECORDS; None for the setting's default."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one run, from the start of the first answer to the end of the last."""

    jobs_per_second: float
    idle_share: float
    """Share of the time in which no place was busy."""
    busy_share: float
    """Average share of the places that were busy."""
    full_rate: float
    """Jobs a second in the middle half of the jobs, when the window neither fills nor drains."""
    pages_left_out: int


def main() -> None:
    """Run the three sides, and print the results."""
    options = _options()
    rate = options.places / options.seconds
    pages = f"pages of {options.page_seconds[0]:g} to {options.page_seconds[1]:g} s"
    title(f"An engine that can answer {rate:g} jobs/s, and {pages}")
    os.environ["POSTBACK_EGRESS__ALLOW_FETCH"] = "127.0.0.0/8"
    os.environ["POSTBACK_ENRICHMENT__BUDGET_SECONDS"] = str(BUDGET_SECONDS)
    os.environ["POSTBACK_ENRICHMENT__MEMBER_SECONDS"] = "10"
    with broker(options.bootstrap_servers) as used, slow_site(*options.page_seconds) as page_of:
        sides = [
            Side("no sources", options.jobs),
            Side("a slow page each, ahead of the engine", options.jobs, page_of),
            Side("a slow page each, in the engine's window", options.sequential_jobs, page_of, options.places),
        ]
        runs = [uvloop.run(_run(used, side, KnownEngine(options.places, options.seconds))) for side in sides]
    _report(sides, runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3_000)
    parser.add_argument(
        "--sequential-jobs", type=int, default=300, help="number of jobs in the slow run, with the small window"
    )
    parser.add_argument("--places", type=int, default=20, help="number of answers that the engine generates at once")
    parser.add_argument("--seconds", type=float, default=0.2, help="seconds that one answer takes")
    parser.add_argument(
        "--page-seconds", type=float, nargs=2, default=[1.0, 3.0], help="shortest and longest seconds that a page takes"
    )
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _report(sides: Sequence[Side], runs: Sequence[Measured]) -> None:
    lines = [
        (
            side.name,
            f"{side.jobs:,}",
            f"{run.jobs_per_second:.1f}",
            f"{run.full_rate:.1f}",
            f"{run.idle_share:.3f}",
            f"{run.busy_share:.2f}",
            run.pages_left_out,
        )
        for side, run in zip(sides, runs, strict=True)
    ]
    table(("", "jobs", "jobs/s", "in the middle half", "engine idle", "its places busy", "pages late"), lines)
    print("every job has exactly one result")
    plain, ahead, within = runs
    verdict("engine idle while jobs wait for slow pages", ahead.idle_share, IDLE_TARGET, at_least=False)
    verdict("jobs/s with slow pages / without sources", ahead.full_rate / plain.full_rate, RATE_TARGET, at_least=True)
    print(f"ahead of the engine / in its window: {ahead.full_rate / within.full_rate:.1f} times the jobs/s")


async def _run(used: Kafka, side: Side, engine: KnownEngine) -> Measured:
    kafka = await asyncio.to_thread(new_fleet, used, PARTITIONS)
    await asyncio.to_thread(prefill, kafka, (_job(number, side.page_of) for number in range(side.jobs)))
    if side.window is not None:
        os.environ["POSTBACK_WORKER__WINDOW_RECORDS"] = str(side.window)
    process = Process(FleetSettings(env="development", kafka=kafka, replica="w0"))
    try:
        async with AsyncExitStack() as stack:
            stage = await inference_stage(process, engine, stack)
            running = asyncio.create_task(stage.run())
            while value_of(process.metrics, SETTLED) < side.jobs:
                if running.done():
                    raise RuntimeError("the stage ended before every job was settled")
                await asyncio.sleep(LOOK_SECONDS)
            stage.stop()
            await running
    finally:
        os.environ.pop("POSTBACK_WORKER__WINDOW_RECORDS", None)
    messages = await asyncio.to_thread(committed_records, kafka.client_config(), kafka.topics.results)
    return _measured(engine, side.jobs, _pages_left_out([message.value() or b"" for message in messages], side))


def _job(number: int, page_of: PageOf | None) -> bytes:
    job: dict[str, object] = {"prompt": f"Who was the judge of the case {number}?", "custom_id": str(number)}
    if page_of is not None:
        job["sources"] = {"urls": [page_of(number)]}
    return json.dumps(job).encode()


def _pages_left_out(values: Sequence[bytes], side: Side) -> int:
    """Return the number of jobs without their page. Raises RuntimeError if a job did not succeed."""
    results = [read_result(value) for value in values]
    assert_exactly_once((str(result.custom_id) for result in results), side.jobs)
    if any(result.outcome != "succeeded" for result in results):
        raise RuntimeError("a job did not succeed")
    return sum(not result.sources for result in results) if side.page_of is not None else 0


def _measured(engine: KnownEngine, jobs: int, left_out: int) -> Measured:
    seconds = engine.ended - engine.began
    middle = engine.begun[jobs // 4 : 3 * jobs // 4]
    return Measured(
        jobs / seconds,
        engine.idle_seconds / seconds,
        engine.busy_seconds / seconds / engine.places,
        (len(middle) - 1) / (middle[-1] - middle[0]),
        left_out,
    )


if __name__ == "__main__":
    main()
