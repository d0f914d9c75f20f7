"""Results on the way to the person that asked: their counts, reasons and order, within bounds."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
import typer

from console.answers import Answers, as_line, as_text
from console.failures import Failures
from console.ordered import OrderedLines
from console.output import written
from producers.receipts import ReceiptEntry
from schemas.outcome import Outcome
from schemas.result import Result, ResultError

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


def entry(line: int, job_id: str, custom_id: str | None = None) -> ReceiptEntry:
    return ReceiptEntry(line=line, job_id=job_id, custom_id=custom_id, tenant="acme", digest="d", at=1)


def told(failures: Failures, capsys: pytest.CaptureFixture[str]) -> list[str]:
    failures.tell()
    return [line.removeprefix("postback: ") for line in capsys.readouterr().err.splitlines()]


def test_jobs_with_one_reason_are_named_in_one_message_by_line_or_by_id(capsys: pytest.CaptureFixture[str]) -> None:
    named: dict[str, ReceiptEntry | None] = {f"j{n}": entry(n, f"j{n}", "mine" if n == 9 else None) for n in range(10)}
    failures = Failures({**named, "plain": None})
    for job_id in ("j9", "j7", "j5", "j3", "j1", "plain"):
        failures.add(job_id, "failed: no" if job_id not in ("j9", "plain") else f"rejected: {job_id}")
    failures.add("j3", "expired: late")
    failures.discard("plain")
    assert told(failures, capsys) == [
        "lines 1, 5, 7: failed: no",
        "line 3: j3 expired: late",
        "line 9 (mine): j9 rejected: j9",
    ]
    failures = Failures({"a": None, "b": None, "c": entry(1, "c"), "d": None})
    for job_id in "dcba":
        failures.add(job_id, "failed: no")
    assert told(failures, capsys) == ["jobs a, b, c and 1 more: failed: no"]


def test_reasons_beyond_those_shown_are_counted_and_only_few_of_very_many_are_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = Failures(None)
    for number in range(1_500):
        failures.add(f"j{number}", f"failed: {number}")
    lines = told(failures, capsys)
    assert lines[:20] == [f"j{number} failed: {number}" for number in range(20)]
    assert lines[20:] == ["and 981 more"]
    few = Failures({f"j{number}": None for number in range(1_500)})
    for number in range(1_500):
        few.add(f"j{number}", f"failed: {number}")
    assert told(few, capsys)[20:] == ["and 981 more"]


def test_a_job_that_is_answered_again_counts_with_its_last_outcome_only() -> None:
    answers = Answers({"a": None}, None, as_line)
    for outcome in (Outcome.FAILED, Outcome.EXPIRED, Outcome.SUCCEEDED):
        answers.add(result("a", outcome))
    assert (answers.summary, answers.failed, answers.well) == (["1 succeeded"], 0, True)


def test_ordered_lines_are_written_in_the_order_of_the_jobs_the_last_of_each_job_once() -> None:
    well, not_well = io.StringIO(), io.StringIO()
    with OrderedLines(["a", "b", "c", "d"]) as ordered:
        for out, line, job_id in (
            (well, "c: é", "c"),
            (not_well, "a: 1", "a"),
            (well, "a: 2", "a"),
            (not_well, "b", "b"),
        ):
            ordered.put(out, line, job_id)
        assert (well.getvalue(), not_well.getvalue()) == ("", "")
        ordered.write()
        ordered.write()
    assert (well.getvalue(), not_well.getvalue()) == ("a: 2\nc: é\n", "b\n")


def test_a_persons_view_has_the_sources_counted_and_no_text_that_steers_the_terminal_or_passes_for_ours() -> None:
    shown = Result(
        job_id="j",
        outcome=Outcome.SUCCEEDED,
        text="42\n\x1b[2Jpostback: 9 of 9 jobs accepted",
        sources=["pmid:1", "https://a.example/"],
        created_at=1,
    )
    assert as_text(shown, entry(7, "j", "q\u202e")).splitlines() == [
        "line 7 (q\\u202e)  j  succeeded  2 sources",
        "    42",
        "    \\u001b[2Jpostback: 9 of 9 jobs accepted",
    ]
    assert as_text(result("k", Outcome.FAILED), None).splitlines() == [
        "k  failed  0 sources",
        "    it failed",
    ]


def test_no_more_results_are_shown_than_a_person_reads() -> None:
    out = io.StringIO()
    answers = Answers({f"j{n}": None for n in range(30)}, out, as_text, most=20)
    for number in range(30):
        answers.add(result(f"j{number}"))
    assert (out.getvalue().count("succeeded"), answers.unwritten) == (20, 10)


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
