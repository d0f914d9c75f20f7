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
"""How long the event loop may not come round before an orchestrator is to restart the process."""
BEAT_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")


class SideTask(Protocol):
    """What runs beside the stages, and without which they would go by what is true no more."""

    @property
    def alive(self) -> bool:
        """Whether it comes round."""
        ...

    def reasons(self) -> list[str]:
        """Why it does not do its work now; empty when it does."""
        ...

    async def ended(self) -> None:
        """Wait for as long as it does its work, and raise what ended it."""
        ...


class LoopBeat:
    """A `SideTask` by which `/healthz` sees whether the event loop comes round; a stage shows only its own thread."""

    def __init__(self, clock: Clock) -> None:
        self._heartbeat = Heartbeat(clock, STUCK_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the loop came round within a minute."""
        return self._heartbeat()

    def reasons(self) -> list[str]:
        """None: a loop that is held up for a moment goes on with its work."""
        return []

    async def ended(self) -> None:
        """Beat until cancelled."""
        while True:
            self._heartbeat.beat()
            await asyncio.sleep(BEAT_SECONDS)


def readiness_of(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> Readiness:
    """Ready when every stage is, and what they go by is up to date."""
    of_stages = [reason for stage in stages for reason in stage.watch.reasons()]
    return Readiness((*of_stages, *(reason for task in beside for reason in task.reasons())))


def alive(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> bool:
    """Alive while every stage's Kafka thread comes round, and whatever runs beside them."""
    return all(stage.watch.alive for stage in stages) and all(task.alive for task in beside)


@contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """What SIGTERM and SIGINT set meanwhile. Around all that a process does, so that neither ever cuts it off."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def run_stages(stages: Sequence[Stage], stop: asyncio.Event, beside: Sequence[SideTask] = ()) -> None:
    """Run until `stop` is set and every stage is drained.

    When a stage dies, or what runs beside them, the others are drained and its error is raised.
    """
    collect_garbage_seldom()
    running = [asyncio.create_task(stage.run(), name=f"stage-{index}") for index, stage in enumerate(stages)]
    watched = [asyncio.create_task(task.ended(), name=f"beside-{index}") for index, task in enumerate(beside)]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([*running, *watched, stopping], return_when=asyncio.FIRST_COMPLETED)
    log.info("Stopping: draining what is dispatched.", action="stopping")
    for stage in stages:
        stage.stop()
    await asyncio.wait(running)  # for all of them: what one raised does not cut the others' drain short
    for task in (*watched, stopping):
        task.cancel()
    await asyncio.wait([*watched, stopping])
    for ended in (*watched, *running):
        if not ended.cancelled():
            ended.result()


async def unless_stopped(preparing: Coroutine[None, None, T], stop: asyncio.Event) -> T | None:
    """Do what comes before serving. None where `stop` was set first, which cancels it. Raises what it raises.

    Loading an engine takes minutes, and a worker that is stopped meanwhile has nothing to drain and everything to end.
    """
    task, stopping = asyncio.ensure_future(preparing), asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        log.info("Stopping before there is anything to drain.", action="stopping")
        task.cancel()
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()
