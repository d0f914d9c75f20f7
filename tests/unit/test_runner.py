"""Records whose handler does not return valid outputs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import pytest

import workers.stage.runner
from telemetry.metrics import Metrics
from tests.unit.stage_rig import OneParty
from workers.stage.defects import Defects
from workers.stage.partition import Partition
from workers.stage.record import Failure, Output, Record
from workers.stage.runner import (
    AT_A_TIME_SECONDS,
    MAX_OUTPUT_BYTES,
    PACED_AT_A_TIME_SECONDS,
    Handled,
    Runner,
)

RECORD = Record("requests", 0, 7, b"a job")
LETTER = Output("dead_letters", b"a job")


class Handler:
    """A handler that returns or raises given values."""

    def __init__(self, answer: Sequence[Output] | Exception, last_resort: Sequence[Output] | Exception) -> None:
        self._answer = answer
        self._last_resort = last_resort
        self.failures: list[Failure] = []

    async def handle(self, record: Record) -> Sequence[Output]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        self.failures.append(failure)
        if isinstance(self._last_resort, Exception):
            raise self._last_resort
        return self._last_resort


Resort = Sequence[Output] | Exception | None
"""The outputs of the stage's last resort, or its error; None stands for a stage without a last resort."""


def handed_back(completions: SimpleQueue[list[Handled]]) -> list[Handled]:
    """The completions that the Kafka thread has not collected yet."""
    return [one for _ in range(completions.qsize()) for one in completions.get()]


async def run(handler: Any, last_resort: Resort = None) -> tuple[list[Handled], dict[str, float]]:
    """The completions of one record, and the number of defects for each call of the handler that raised."""
    completions: SimpleQueue[list[Handled]] = SimpleQueue()
    metrics, before = Metrics(), asyncio.all_tasks()

    def resort(record: Record, failure: Failure) -> Sequence[Output]:
        assert (record, failure.code) == (RECORD, "handler_defect")
        if isinstance(last_resort, Exception):
            raise last_resort
        return last_resort or ()

    runner = Runner(handler, completions, Defects(metrics), None, None if last_resort is None else resort)
    runner.start([(Partition("requests", 0, 1, 0.0), RECORD)], 5.0)
    await asyncio.gather(*asyncio.all_tasks() - before, return_exceptions=True)
    await asyncio.sleep(0)
    samples = [sample for metric in metrics.handler_defects.collect() for sample in metric.samples]
    counted = {one.labels["call"]: one.value for one in samples if one.name.endswith("_total") and one.value}
    return handed_back(completions), counted


async def test_a_record_whose_handler_raises_is_given_up() -> None:
    handler = Handler(ZeroDivisionError("a secret"), [LETTER])
    (completion,), defects = await run(handler)
    assert completion.outputs == [LETTER]
    assert defects == {"handle": 1}
    (failure,) = handler.failures
    assert failure.code == "internal_error"
    assert "a secret" not in failure.message


async def test_a_handler_that_returns_none_has_a_defect_and_its_record_is_given_up() -> None:
    nothing: Any = None
    (completion,), defects = await run(Handler(nothing, [LETTER]))
    assert (completion.outputs, defects) == ([LETTER], {"handle": 1})


async def test_a_handler_that_passes_on_the_cancellation_of_its_own_task_does_not_leave_its_record_open() -> None:
    class Careless(Handler):
        async def handle(self, record: Record) -> Sequence[Output]:
            helper = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(helper.cancel)
            await helper
            raise AssertionError

    (completion,), defects = await run(Careless((), [LETTER]))
    assert (completion.outputs, defects) == ([LETTER], {"handle": 1})


async def test_a_header_without_a_value_may_be_copied_to_an_output() -> None:
    moved = Output("dead_letters", b"a job", headers=[("trace", None)])
    (completion,), defects = await run(Handler([moved], [LETTER]))
    assert (completion.outputs, defects) == ([moved], {})


LARGE = b"x" * (MAX_OUTPUT_BYTES + 1)
WIDE = [("\U0001f4e8" * (MAX_OUTPUT_BYTES // 4 + 1), b"")]
"""Headers whose number of characters would fit, but which have four times as many bytes."""


@pytest.mark.parametrize(
    "output",
    [
        Output("results", LARGE),
        Output("results", None, LARGE),
        Output("results", b"", headers=[("note", LARGE)]),
        Output("r", b"", headers=WIDE),
        Output("r", b"", headers=[("", b"")] * 200_000),
    ],
    ids=["value", "key", "headers", "names of wide characters", "headers of nothing"],
)
async def test_an_output_that_no_broker_would_take_is_not_produced(output: Output) -> None:
    (completion,), defects = await run(Handler([output], [LETTER]))
    assert completion.outputs == [LETTER]
    assert defects == {}


UNABLE: list[Sequence[Output] | Exception] = [
    KeyError("a secret"),
    RecursionError(),
    [Output("dead_letters", LARGE)],
    [Output("dead_letters", b"", headers=[("\ud800", b"")])],
]


@pytest.mark.parametrize("given_up", UNABLE)
async def test_the_last_resort_takes_a_record_that_its_handler_fails_to_give_up(
    given_up: Sequence[Output] | Exception,
) -> None:
    (completion,), defects = await run(Handler(ValueError(), given_up), [LETTER])
    assert (completion.outputs, defects) == ([LETTER], {"handle": 1, "give_up": 1})


@pytest.mark.parametrize("last_resort", [None, *UNABLE])
async def test_a_record_completes_also_where_the_last_resort_fails(last_resort: Resort) -> None:
    (completion,), defects = await run(Handler(ValueError(), KeyError()), last_resort)
    assert completion.outputs == ()
    assert defects == {"handle": 1, "give_up": 1} | ({} if last_resort is None else {"last_resort": 1})


async def test_records_behind_one_that_cannot_be_given_up_are_handled() -> None:
    class Picky(Handler):
        async def handle(self, record: Record) -> Sequence[Output]:
            return [LETTER] if record.offset else await super().handle(record)

    completions: SimpleQueue[list[Handled]] = SimpleQueue()
    runner = Runner(Picky(ValueError(), KeyError()), completions, Defects(Metrics()))
    runner.start(records_of(Partition("requests", 0, 1, 0.0), 0, 1, 2), 0.0)
    await settled()
    found = handed_back(completions)
    assert [(one.record.offset, one.outputs) for one in found] == [(0, ()), (1, [LETTER]), (2, [LETTER])]


async def test_a_deferral_that_raises_gives_its_record_up_and_defers_the_others() -> None:
    class Sharing(OneParty):
        def defer(self, record: Record) -> Sequence[Output]:
            if record.offset == 0:
                raise KeyError
            return [LETTER]

    completions: SimpleQueue[list[Handled]] = SimpleQueue()
    metrics = Metrics()
    runner = Runner(Handler((), KeyError()), completions, Defects(metrics), Sharing(), lambda *_: [LETTER])
    runner.defer(records_of(Partition("requests", 0, 1, 0.0), 0, 1), 0.0)
    await settled()
    assert [one.outputs for one in handed_back(completions)] == [[LETTER], [LETTER]]
    assert metrics.registry.get_sample_value("postback_handler_defects_total", {"call": "defer"}) == 1


class SlowSharing(OneParty):
    """A sharing in which each deferral takes longer than the runner's turn on the event loop may take."""

    def defer(self, record: Record) -> Sequence[Output]:
        time.sleep(2 * AT_A_TIME_SECONDS)
        return [LETTER]


async def test_a_record_that_can_run_does_not_wait_until_a_whole_surplus_is_deferred() -> None:
    completions: SimpleQueue[list[Handled]] = SimpleQueue()
    runner = Runner(Handler((), ()), completions, Defects(Metrics()), SlowSharing())
    where = Partition("requests", 0, 1, 0.0)
    runner.defer(records_of(where, *range(10)), 0.0)
    runner.start(records_of(where, 10), 0.0)
    ended: list[Handled] = []
    while len(ended) < 11:
        await asyncio.sleep(0)
        ended += handed_back(completions)
    assert [one.deferred for one in ended].index(False) < 5
    assert [one.record.offset for one in ended if one.deferred] == list(range(10))
    assert runner.deferred == 10


async def test_a_surplus_of_a_partition_that_another_worker_gets_is_dropped() -> None:
    completions: SimpleQueue[list[Handled]] = SimpleQueue()
    runner = Runner(Handler((), ()), completions, Defects(Metrics()), SlowSharing())
    going, kept = Partition("requests", 0, 1, 0.0), Partition("requests", 1, 1, 0.0)
    runner.defer([*records_of(going, *range(5)), *records_of(kept, 0)], 0.0)
    runner.cancel(going)
    await settled()
    assert runner.deferred == 6
    *earlier, last = [one.partition for one in handed_back(completions)]
    assert last is kept
    # The list is empty if the machine paused for longer than a turn when the first turn began.
    assert earlier in ([], [going])


class Waiting:
    """A handler that remembers the task of each record; records with an odd offset wait until `gate` is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.tasks: dict[int, object] = {}
        self.cancelled: list[int] = []

    async def handle(self, record: Record) -> Sequence[Output]:
        self.tasks[record.offset] = asyncio.current_task()
        if record.offset % 2:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(record.offset)
                raise
        return []

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise AssertionError(failure.message)


def waiting_runner() -> tuple[Runner, Waiting, SimpleQueue[list[Handled]]]:
    handler, completions = Waiting(), SimpleQueue[list[Handled]]()
    return Runner(handler, completions, Defects(Metrics())), handler, completions


def records_of(partition: Partition, *offsets: int) -> list[tuple[Partition, Record]]:
    return [(partition, Record("requests", 0, offset, b"")) for offset in offsets]


async def settled() -> None:
    """Let every task run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_records_that_need_not_wait_share_a_task_and_others_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers.stage.runner, "AT_A_TIME_SECONDS", 60.0)  # no turn ends early even on a busy machine
    runner, handler, completions = waiting_runner()
    runner.start(records_of(Partition("requests", 0, 1, 0.0), 0, 2, 1, 4, 3, 6), 0.0)
    await settled()
    assert len(handed_back(completions)) == 4, "records behind a waiting record do not wait with it"
    assert handler.tasks[0] is handler.tasks[2]
    assert len({id(handler.tasks[offset]) for offset in (1, 3)}) == 2
    runner.start(records_of(Partition("requests", 1, 1, 0.0), 8), 0.0)
    handler.gate.set()
    await settled()
    assert len(handed_back(completions)) == 3


async def test_completions_of_one_turn_are_handed_back_together() -> None:
    completions = SimpleQueue[list[Handled]]()
    runner = Runner(Waiting(), completions, Defects(Metrics()), at_a_time_seconds=60.0)
    runner.start(records_of(Partition("requests", 0, 1, 0.0), 0, 2, 4), 0.0)
    await settled()
    assert (completions.qsize(), [one.record.offset for one in completions.get()]) == (1, [0, 2, 4])


async def test_cancelling_a_partition_ends_its_records_begun_or_not_and_no_others() -> None:
    runner, handler, completions = waiting_runner()
    gone, kept = Partition("requests", 0, 1, 0.0), Partition("requests", 1, 1, 0.0)
    runner.start(records_of(gone, 1, 2), 0.0)
    await settled()
    runner.start([*records_of(gone, 3, 4), *records_of(kept, 5, 6)], 0.0)
    runner.cancel(gone)
    await settled()
    assert handler.cancelled == [1]
    assert set(handler.tasks) == {1, 2, 5, 6}
    handler.gate.set()
    await settled()
    assert [one.record.offset for one in handed_back(completions)] == [2, 6, 5]


async def test_a_dispatched_record_counts_as_begun_once_it_begins_or_is_cancelled() -> None:
    runner, handler, _ = waiting_runner()
    gone, kept = Partition("requests", 0, 1, 0.0), Partition("requests", 1, 1, 0.0)
    runner.start([*records_of(gone, 1, 2), *records_of(kept, 3)], 0.0)
    assert runner.begun == 0
    runner.cancel(gone)
    assert runner.begun == 2
    await settled()
    assert (runner.begun, set(handler.tasks)) == (3, {3})
    handler.gate.set()
    await settled()


@pytest.mark.parametrize("most", [AT_A_TIME_SECONDS, PACED_AT_A_TIME_SECONDS])
async def test_many_records_that_need_not_wait_leave_turns_to_the_event_loop(most: float) -> None:
    class Slow(Waiting):
        async def handle(self, record: Record) -> Sequence[Output]:
            time.sleep(most / 2)  # blocking work also keeps the loop from running
            return await super().handle(record)

    handler, completions = Slow(), SimpleQueue[list[Handled]]()
    offsets, partition = range(0, 40, 2), Partition("requests", 0, 1, 0.0)
    Runner(handler, completions, Defects(Metrics()), at_a_time_seconds=most).start(records_of(partition, *offsets), 0.0)
    seen = [0]
    while len(handler.tasks) < len(offsets):
        await asyncio.sleep(0)
        seen.append(len(handler.tasks))
    assert max(after - before for before, after in pairwise(seen)) <= 2
    await settled()
    assert len(handed_back(completions)) == len(offsets)


async def test_a_record_waits_for_no_more_than_a_slice_of_another_stages_paced_records() -> None:
    class Slow(Waiting):
        async def handle(self, record: Record) -> Sequence[Output]:
            time.sleep(PACED_AT_A_TIME_SECONDS)
            return await super().handle(record)

    handler, defects = Slow(), Defects(Metrics())
    tiers = Runner(handler, SimpleQueue[list[Handled]](), defects, at_a_time_seconds=PACED_AT_A_TIME_SECONDS)
    tiers.start(records_of(Partition("tier", 0, 1, 0.0), *range(0, 80, 2)), 0.0)
    await asyncio.sleep(0)
    begun = len(handler.tasks)
    Runner(handler, SimpleQueue[list[Handled]](), defects).start(records_of(Partition("results", 0, 1, 0.0), 100), 0.0)
    while len(handler.tasks) < 41:
        await asyncio.sleep(0)
    assert (begun, list(handler.tasks).index(100)) == (1, 2)
