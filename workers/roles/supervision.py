"""Supervision of stages and of side tasks: signals, readiness, and the order in which they stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from telemetry.clock import Clock
from telemetry.health import Heartbeat, Readiness
from telemetry.logs import get_logger
from workers.stage.stage import Stage
from workers.system.tuning import collect_garbage_seldom

log = get_logger()

STUCK_SECONDS = 60.0
"""How long the event loop may be blocked until `/healthz` asks the orchestrator for a restart."""
BEAT_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")


class SideTask(Protocol):
    """A background task that the stages depend on: without it they act on stale data."""

    @property
    def alive(self) -> bool:
        """Whether the task still runs its loop."""
        ...

    def reasons(self) -> list[str]:
        """Why the task does not do its work now; empty when it does."""
        ...

    async def ended(self) -> None:
        """Run until cancelled. Raises the error that ends the task, and with it the process."""
        ...


class LoopBeat:
    """A `SideTask` that shows `/healthz` whether the event loop is blocked; a stage shows its Kafka thread alone."""

    def __init__(self, clock: Clock) -> None:
        self._heartbeat = Heartbeat(clock, STUCK_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the loop ran within the last minute."""
        return self._heartbeat()

    def reasons(self) -> list[str]:
        """None: a loop that is blocked for a moment goes on with its work."""
        return []

    async def ended(self) -> None:
        """Beat until cancelled."""
        while True:
            self._heartbeat.beat()
            await asyncio.sleep(BEAT_SECONDS)


def readiness_of(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> Readiness:
    """Ready when every stage and every side task is."""
    of_stages = [reason for stage in stages for reason in stage.watch.reasons()]
    return Readiness((*of_stages, *(reason for task in beside for reason in task.reasons())))


def alive(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> bool:
    """Alive while every stage's Kafka thread and every side task run their loops."""
    return all(stage.watch.alive for stage in stages) and all(task.alive for task in beside)


@contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set during this block, instead of ending the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def run_stages(stages: Sequence[Stage], stop: asyncio.Event, beside: Sequence[SideTask] = ()) -> None:
    """Run until `stop` is set, then drain every stage.

    When a stage or a side task dies, the other stages are drained too, and its error is raised.
    """
    collect_garbage_seldom()
    running = [asyncio.create_task(stage.run(), name=f"stage-{index}") for index, stage in enumerate(stages)]
    watched = [asyncio.create_task(task.ended(), name=f"beside-{index}") for index, task in enumerate(beside)]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([*running, *watched, stopping], return_when=asyncio.FIRST_COMPLETED)
    log.info("Stopping: draining the records in flight.", action="stopping")
    for stage in stages:
        stage.stop()
    await asyncio.wait(running)  # for all of them: one stage's error must not cut the others' drain short
    for task in (*watched, stopping):
        task.cancel()
    await asyncio.wait([*watched, stopping])
    for ended in (*watched, *running):
        if not ended.cancelled():
            ended.result()


async def unless_stopped(preparing: Coroutine[None, None, T], stop: asyncio.Event) -> T | None:
    """The result of the preparation, or None where `stop` was set first and cancelled it. Raises its errors.

    Loading an engine takes minutes. A worker that is stopped meanwhile has records neither to drain nor to settle.
    """
    task, stopping = asyncio.ensure_future(preparing), asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        log.info("Stopping during the start: no record is in flight.", action="stopping")
        task.cancel()
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()
