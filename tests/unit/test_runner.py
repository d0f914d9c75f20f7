"""What becomes of a record whose handler does not return what it should."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from queue import SimpleQueue

import pytest

from workers.stage.partition import Partition
from workers.stage.record import Failure, Output, Record
from workers.stage.runner import MAX_OUTPUT_BYTES, Completion, GivingUpFailed, Runner

RECORD = Record("requests", 0, 7, b"a job")
LETTER = Output("dead_letters", b"a job")


class Handler:
    """Returns, or raises, what it is made with."""

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


async def run(handler: Handler) -> tuple[list[Completion], list[Exception]]:
    """The completions and the defects of one record."""
    completions: SimpleQueue[Completion] = SimpleQueue()
    defects: list[Exception] = []
    before = asyncio.all_tasks()
    Runner(handler, completions, defects.append).start([(Partition("requests", 0, 1, 0.0), RECORD)], 5.0)
    await asyncio.gather(*asyncio.all_tasks() - before, return_exceptions=True)
    return [completions.get() for _ in range(completions.qsize())], defects


async def test_a_record_whose_handler_raises_is_given_up() -> None:
    handler = Handler(ZeroDivisionError("a secret"), [LETTER])
    (completion,), defects = await run(handler)
    assert completion.outputs == [LETTER]
    assert defects == []
    (failure,) = handler.failures
    assert failure.code == "internal_error"
    assert "a secret" not in failure.message


LARGE = b"x" * (MAX_OUTPUT_BYTES + 1)


@pytest.mark.parametrize(
    "output",
    [Output("results", LARGE), Output("results", None, LARGE), Output("results", b"", headers=[("note", LARGE)])],
    ids=["value", "key", "headers"],
)
async def test_an_output_that_no_broker_would_take_is_not_produced(output: Output) -> None:
    (completion,), defects = await run(Handler([output], [LETTER]))
    assert completion.outputs == [LETTER]
    assert defects == []


@pytest.mark.parametrize("last_resort", [KeyError("callback_url"), [Output("dead_letters", LARGE)]])
async def test_a_handler_that_cannot_even_give_up_ends_the_stage(last_resort: Sequence[Output] | Exception) -> None:
    completions, defects = await run(Handler(ValueError(), last_resort))
    assert completions == []
    assert [type(defect) for defect in defects] == [
        type(last_resort) if isinstance(last_resort, Exception) else GivingUpFailed
    ]
