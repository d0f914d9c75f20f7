"""Supervision of stages and side tasks: signals, readiness, and the order of stopping."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from telemetry.clock import Clock
from telemetry.health import Heartbeat, Readiness
from telemetry.logs import get_logger
from workers.stage.stage import Stage
from workers.system.side_task import SideTask
from workers.system.tuning import collect_garbage_seldom

log = get_logger()

STUCK_SECONDS = 60.0
"""The longest time for which the event loop may be blocked.

After this time `/healthz` fails, so that the orchestrator restarts the process.
"""
BEAT_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")


class LoopBeat(SideTask):
    """Lets `/healthz` detect a blocked event loop. A stage checks only its own Kafka thread."""

    def __init__(self, clock: Clock) -> None:
        self._heartbeat = Heartbeat(clock, STUCK_SECONDS)

    @property
    def alive(self) -> bool:
        """True if the loop ran within the last minute."""
        return self._heartbeat()

    async def ended(self) -> None:
        """Record a heartbeat every BEAT_SECONDS until cancelled."""
        while True:
            self._heartbeat.beat()
            await asyncio.sleep(BEAT_SECONDS)


def readiness_of(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> Readiness:
    """Return the readiness of a process: ready if every stage and every side task is ready."""
    of_stages = [reason for stage in stages for reason in stage.watch.reasons()]
    return Readiness((*of_stages, *(reason for task in beside for reason in task.reasons())))


def alive(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> bool:
    """Return whether every stage's Kafka thread and every side task still run their loops."""
    return all(stage.watch.alive for stage in stages) and all(task.alive for task in beside)


@contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set during this block, instead of ending the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def run_stages(
    stages: Sequence[Stage], stop: asyncio.Event, beside: Sequence[SideTask] = (), fronts: Sequence[SideTask] = ()
) -> None:
    """Run until `stop` is set, then drain every stage.

    `fronts` are side tasks that take work from outside. These tasks end first, while the tasks in `beside` still serve
    that work. If a stage or a side task ends with an error, the other stages are drained too, and the error is raised.
    """
    collect_garbage_seldom()
    running = [asyncio.create_task(stage.run(), name=f"stage-{index}") for index, stage in enumerate(stages)]
    watched = [asyncio.create_task(task.ended(), name=f"beside-{index}") for index, task in enumerate(beside)]
    taking = [asyncio.create_task(task.ended(), name=f"front-{index}") for index, task in enumerate(fronts)]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([*running, *watched, *taking, stopping], return_when=asyncio.FIRST_COMPLETED)
    log.info("Stopping: draining the records in flight.", action="stopping")
    for stage in stages:
        stage.stop()
    for front in taking:
        front.cancel()
    await asyncio.gather(
        *running, *taking, return_exceptions=True
    )  # wait for all stages to drain, because one stage's error must not cut short another stage's drain
    for task in (*watched, stopping):
        task.cancel()
    await asyncio.wait([*watched, stopping])
    for ended in (*watched, *taking, *running):
        if not ended.cancelled():
            ended.result()


async def unless_stopped(preparing: Coroutine[None, None, T], stop: asyncio.Event) -> T | None:
    """Return the result of `preparing`, and raise its errors.

    If `stop` is set first, cancel `preparing` and return None. Loading an engine takes minutes. A worker that is
    stopped during the load has no records to drain.
    """
    task, stopping = asyncio.ensure_future(preparing), asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        log.info("Stopping during the start: no record is in flight.", action="stopping")
        task.cancel()
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()
