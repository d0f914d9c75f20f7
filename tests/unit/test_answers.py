"""What is counted and kept of results on their way to who asked for them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import typer

from console.answers import Answers, as_line
from console.output import written
from schemas.result import Outcome, Result, ResultError

MANY = 20_000


def result(job_id: str, outcome: Outcome = Outcome.SUCCEEDED) -> Result:
    error = None if outcome is Outcome.SUCCEEDED else ResultError(code="echo", message="it failed")
    return Result(job_id=job_id, outcome=outcome, error=error, text="42", created_at=1)


def test_of_all_results_of_a_time_only_the_outcomes_are_counted_and_no_job_is_kept() -> None:
    answers = Answers(None, None, as_line)
    tracemalloc.start()
    try:
        for number in range(MANY):
            answers.add(result(f"job_{number:060}", Outcome.FAILED if number % 2 else Outcome.SUCCEEDED))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answers.found, answers.summary) == ("20000 results", ["10000 succeeded", "10000 failed"])
    assert kept < MANY * 10, "bytes, less than any id has"


def test_a_named_job_with_two_results_counts_once_and_one_that_was_not_named_does_not() -> None:
    answers = Answers({"a": None, "b": None}, None, as_line)
    assert [answers.add(result(job_id)) for job_id in ("a", "other", "a")] == [True, False, False]
    assert (answers.found, answers.summary) == ("1 of 2 jobs have a result", ["1 succeeded", "1 without a result"])
    assert (answers.open, answers.well) == (1, False)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "on the way"])
def test_a_full_disk_ends_the_command_with_one_line_that_names_the_file(
    lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, written("--output", Path("/dev/full")) as out:
        answers = Answers(None, out, as_line)
        for _ in range(lines):
            answers.add(result("a"))
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "postback: --output /dev/full: No space left on device\n"
