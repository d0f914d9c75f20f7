"""The end of a process: its stages in order, other tasks beside them, and an end before all of them have started."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from confluent_kafka import KafkaError

from schemas.settings import KafkaSettings
from telemetry.hand_clock import HandClock
from workers.engines.base import EngineLost, EngineUnavailable
from workers.inference.engine_watch import EngineWatch
from workers.kafka.topics import AccessDenied, BrokerAway, unanswered
from workers.roles.supervision import LoopBeat, alive, readiness_of, run_stages, stop_signal, unless_stopped
from workers.system.errors import ProcessError


class Broken:
    """A stage whose Kafka thread ends at once."""

    async def run(self) -> None:
        raise ValueError("broken")

    def stop(self) -> None:
        pass


class Beside:
    """A task that runs beside the stages; a test can end the task."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        self._ended.set_exception(ValueError("what the stages go by is old"))

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    def reasons(self) -> list[str]:
        return ["it has ended"] if self._ended.done() else []

    async def ended(self) -> None:
        await asyncio.shield(self._ended)


class Draining:
    """A stage that drains for a while once it is stopped."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self.drained = False

    async def run(self) -> None:
        await self._stopping.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        self.drained = True

    def stop(self) -> None:
        self._stopping.set()


@pytest.fixture(autouse=True)
def keep_collecting_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "workers.roles.supervision.collect_garbage_seldom", lambda: None
    )  # replaced, because the real function would change the test process's garbage collector


async def test_when_one_stage_dies_the_others_are_drained_before_its_error_is_raised() -> None:
    broken: Any = Broken()
    other: Any = Draining()
    with pytest.raises(ValueError, match="broken"):
        await run_stages([broken, other], asyncio.Event())
    assert other.drained


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, AccessDenied, r"refuses access to the topic jobs.*ACLs"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, AccessDenied, r"refuses access to the topic jobs.*ACLs"),
        (KafkaError._TIMED_OUT, BrokerAway, r"Kafka at host:1 does not answer \(_TIMED_OUT\)"),
    ],
)
def test_a_broker_that_refuses_is_distinguished_from_one_that_is_away(
    code: int, kind: type[ProcessError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        raise unanswered(KafkaSettings(bootstrap_servers="host:1"), KafkaError(code), " to the topic jobs")


async def test_stages_are_drained_when_a_side_task_ends_and_its_error_is_raised() -> None:
    stage: Any = Draining()
    beside, sound = Beside(), Beside()
    asyncio.get_running_loop().call_later(0.01, beside.end)
    with pytest.raises(ValueError, match="old"):
        await run_stages([stage], asyncio.Event(), [sound, beside])
    assert stage.drained
    assert readiness_of([], [sound, beside]).reasons == ("it has ended",)
    assert not alive([], [sound, beside])
    assert alive([], [sound])


async def test_an_engine_that_is_lost_ends_the_process_once_the_stage_is_drained() -> None:
    stage: Any = Draining()
    watch = EngineWatch(HandClock())
    running = asyncio.create_task(run_stages([stage], asyncio.Event(), [watch]))
    with watch.asking():
        watch.failed(EngineUnavailable("the server answered 503"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not running.done()
        watch.failed(EngineLost("loading it failed 5 times in a row"))
        with pytest.raises(EngineLost, match="5 times in a row"):
            await running
    assert stage.drained


async def test_a_signal_drains_the_stages_and_is_no_error() -> None:
    stage: Any = Draining()
    with stop_signal() as stop:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        await run_stages([stage], stop, [Beside()])
    assert stage.drained


async def test_a_front_answers_its_running_requests_before_the_tasks_beside_it_end() -> None:
    order: list[str] = []

    class Answering(Beside):
        def __init__(self, name: str, turns: int) -> None:
            super().__init__()
            self._name, self._turns = name, turns

        async def ended(self) -> None:
            try:
                await super().ended()
            finally:
                for _ in range(self._turns):
                    await asyncio.sleep(0)
                order.append(self._name)

    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    await run_stages([], stop, [Answering("view", 0)], [Answering("door", 10)])
    assert order == ["door", "view"]


async def test_a_signal_ends_the_steps_before_serving() -> None:
    ended = False

    async def preparing() -> str:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True
        return "never"

    async def prepared() -> str:
        return "ready"

    with stop_signal() as stop:
        assert await unless_stopped(prepared(), stop) == "ready"
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        assert await unless_stopped(preparing(), stop) is None
    assert ended


async def test_a_stuck_event_loop_is_noticed_and_counts_as_alive_once_it_runs_again() -> None:
    clock = HandClock()
    beat = LoopBeat(clock)
    beating = asyncio.create_task(beat.ended())
    await asyncio.sleep(0)
    clock.now += 59.0
    assert alive([], [beat])
    clock.now += 2.0  # the task has not run meanwhile, as when a handler blocks the loop
    assert not alive([], [beat])
    beating.cancel()
    again = asyncio.create_task(beat.ended())
    await asyncio.sleep(0)
    assert alive([], [beat])
    again.cancel()
