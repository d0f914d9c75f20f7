"""Results on the way to a file or a person: the newest of each job, and a replay's selection."""

from __future__ import annotations

import io
import random
import resource
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli.shared.failures import Failures
from cli.shared.output import OrderedLines, refuse_one_file, written
from cli.take.answers import Answers, as_line, as_text
from producers.newest import Moment, Moments, superseded
from producers.receipts import ReceiptEntry
from producers.results import Settled
from producers.scan import StoredPlace
from producers.selection import is_at
from producers.times import NotATime, parse_time, show_time
from schemas.codec import read_result
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


def test_a_named_job_counts_once_with_its_last_outcome_and_one_that_was_not_named_does_not() -> None:
    answers = Answers({"a": None, "b": None}, None, as_line)
    assert [answers.add(result(job_id)) for job_id in ("a", "other", "a")] == [True, False, False]
    assert (answers.found, answers.summary) == ("1 of 2 jobs have a result", ["1 succeeded", "1 without a result"])
    assert (answers.open, answers.well) == (1, False)
    again = Answers({"a": None}, None, as_line)
    for outcome in (Outcome.FAILED, Outcome.EXPIRED, Outcome.SUCCEEDED):
        again.add(result("a", outcome))
    assert (again.summary, again.failed, again.well) == (["1 succeeded"], 0, True)


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
    said = "--output /dev/full: No space left on device; free space there, and run the command again"
    assert capsys.readouterr().err == f"postback: {said}\n"


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let this process write no file of more than 1 MiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("earlier", [None, "of an earlier run\n"])
@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_keeps_the_earlier_file_and_the_lines_that_were_written(
    earlier: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, part = tmp_path / "results.jsonl", tmp_path / "results.jsonl.part"
    if earlier is not None:
        output.write_text(earlier)
    with pytest.raises(typer.Exit) as ended, written("--output", output, "free 2 GB") as out:
        assert out is not None
        for number in range(1_000_000):
            out.write(f"{number:0999}\n")
    assert ended.value.exit_code == 1
    assert (output.read_text() if output.exists() else None) == earlier
    assert part.read_text().splitlines() == [f"{number:0999}" for number in range(1048)]
    assert set(tmp_path.iterdir()) == {part, *([output] if earlier is not None else [])}
    kept = f"{part} has the 1048 lines that were written"
    if earlier is not None:
        kept = f"{output} is as it was, and {kept}"
    assert capsys.readouterr().err == f"postback: --output {output}: File too large; {kept}; free 2 GB\n"


def test_an_output_file_is_replaced_at_the_end_and_keeps_its_mode(tmp_path: Path) -> None:
    output, link = tmp_path / "results.jsonl", tmp_path / "link"
    output.write_text("of an earlier run\n")
    output.chmod(0o640)
    link.symlink_to(output)
    with written("--output", link) as out:
        assert out is not None
        out.write("new\n")
        out.flush()
        assert output.read_text() == "of an earlier run\n"
    assert (output.read_text(), stat.S_IMODE(output.stat().st_mode), link.is_symlink()) == ("new\n", 0o640, True)
    assert set(tmp_path.iterdir()) == {output, link}


@pytest.mark.parametrize("lines", [0, 2])
def test_a_command_that_ends_on_the_way_keeps_the_earlier_file_and_names_the_new_lines(
    lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, part = tmp_path / "results.jsonl", tmp_path / "results.jsonl.part"
    output.write_text("of an earlier run\n")
    with pytest.raises(KeyboardInterrupt), written("--output", output) as out:
        assert out is not None
        out.write("line\n" * lines)
        raise KeyboardInterrupt
    assert output.read_text() == "of an earlier run\n"
    assert set(tmp_path.iterdir()) == ({output, part} if lines else {output})
    said = f"postback: --output: {output} is as it was, and {part} has the 2 lines that were written\n"
    assert capsys.readouterr().err == (said if lines else "")


def test_no_output_is_an_input_or_another_output_by_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, hard, absent = tmp_path / "jobs.jsonl", tmp_path / "hard", tmp_path / "absent"
    jobs.write_text("{}\n")
    hard.hardlink_to(jobs)
    for outputs, inputs in (
        ({"--out": hard}, {"FILE": str(jobs)}),
        ({"--a": None, "--out": tmp_path / "." / "absent"}, {"FILE": f"{tmp_path}/../{tmp_path.name}/absent"}),
        ({"FILE": jobs, "--out": hard}, {"--other": None}),
        ({"FILE": absent, "--out": absent}, {}),
    ):
        with pytest.raises(typer.Exit) as ended:
            refuse_one_file(outputs, inputs)
        assert ended.value.exit_code == 2
        said = capsys.readouterr().err
        assert said == f"postback: --out {outputs['--out']}: is also the file of FILE; name another file\n"
    refuse_one_file({"--a": jobs, "--b": absent}, {"--c": "-", "--d": None})
    refuse_one_file({"--a": Path("/dev/null"), "--b": Path("/dev/null")}, {"FILE": "/dev/null"})


# -- the newest of a job's results -------------------------------------------------------------------------------------


RECORDS = st.lists(
    st.tuples(st.sampled_from(["acme", "globex"]), st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 1)),
    max_size=30,
)
"""Tenant, job id, partition and milliseconds since the previous record."""


@given(RECORDS, st.randoms())
def test_all_results_but_the_newest_of_each_job_are_superseded_however_they_are_read(
    records: list[tuple[str, str, int, int]], order: random.Random
) -> None:
    settled, at_ms = [], 1_000
    newest: dict[tuple[str, str], Moment] = {}
    for offset, (tenant, job_id, partition, later) in enumerate(records):
        at_ms += later
        moment = Moment(at_ms, partition, offset)
        settled.append((tenant, job_id, moment))
        newest[tenant, job_id] = max(moment, newest.get((tenant, job_id), moment))
    order.shuffle(settled)
    counting = {StoredPlace(moment.partition, moment.offset) for moment in newest.values()}
    places = {StoredPlace(moment.partition, moment.offset) for _, _, moment in settled}
    assert superseded(settled) == places - counting


def test_in_one_partition_the_later_record_is_newer_though_the_broker_s_clock_was_set_back() -> None:
    moments = Moments()
    first, second = moments.of(5_000, StoredPlace(0, 1)), moments.of(4_000, StoredPlace(0, 2))
    assert second > first
    # Partition 0's clock was set back, so its times are raised; a time in partition 1 stays as it is.
    assert moments.of(4_500, StoredPlace(1, 9)) < first


def settled(job_id: str, outcome: Outcome, at_ms: int, partition: int = 0, offset: int = 0) -> Settled:
    return Settled("acme", result(job_id, outcome), Moment(at_ms, partition, offset))


CAME = [
    settled("a", Outcome.REJECTED, 1_000, 0, 0),
    settled("b", Outcome.SUCCEEDED, 1_000, 1, 0),
    settled("c", Outcome.FAILED, 1_000, 2, 0),
    settled("a", Outcome.SUCCEEDED, 2_000, 1, 1),
    settled("b", Outcome.FAILED, 2_000, 0, 1),
]


@pytest.mark.parametrize("seed", range(5))
def test_while_results_arrive_each_job_keeps_one_line_in_one_file_and_counts_once(tmp_path: Path, seed: int) -> None:
    came = random.Random(seed).sample(CAME, len(CAME))
    output, errors = tmp_path / "output", tmp_path / "errors"
    with written("--output", output) as out, written("--errors", errors) as apart:
        answers = Answers(dict.fromkeys("abc"), out, as_line, apart)
        assert sum(answers.take([each], "acme") for each in came) == 3
        assert answers.take([CAME[0]], "globex") == 0
        answers.settle()
    lines = (path.read_bytes().splitlines() for path in (output, errors))
    well, not_well = ([read_result(line).job_id for line in each] for each in lines)
    assert (well, sorted(not_well)) == (["a"], ["b", "c"])
    assert answers.summary == ["1 succeeded", "2 failed"]
    assert not answers.well


def test_lines_in_a_pipe_cannot_be_taken_back_so_the_command_says_that_the_last_ones_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("cli.take.answers.without_lines", lambda out, numbers: False)
    answers = Answers(dict.fromkeys("abc"), pipe, as_line)
    answers.take(CAME[:4], "acme")
    answers.settle()
    answers.tell()
    lines = [read_result(line.encode()) for line in pipe.getvalue().splitlines()]
    assert [(line.job_id, line.outcome) for line in lines if line.job_id == "a"][-1] == ("a", "succeeded")
    assert capsys.readouterr().err.splitlines() == [
        "postback: 1 jobs were answered again meanwhile: the last line of each counts",
        "postback: c failed: it failed",
    ]


# -- a replay's selection ----------------------------------------------------------------------------------------------


def test_an_endpoint_is_a_url_or_an_origin_with_all_of_its_urls_in_any_spelling() -> None:
    same = {
        ("https://h/in?t=1", "https://h/in?t=1"),
        ("https://h/in", "https://h"),
        ("https://h:443/in", "https://h"),
        ("https://h/in", "HTTPS://H:443"),
        ("https://bücher.example/in", "https://xn--bcher-kva.example"),
    }
    others = {
        ("https://h/in?t=1", "https://h/in"),
        ("https://h:8443/in", "https://h"),
        ("http://h/in", "https://h"),
        *(("https://h/in", endpoint) for endpoint in ("https://h?", "https://h/", "h")),
        ("http://[", "x://["),
        (None, "https://h"),
    }
    assert {pair for pair in same | others if is_at(*pair)} == same


# -- times -------------------------------------------------------------------------------------------------------------


NOW = 1_800_000_000.0
"""15 January 2027, 08:00 UTC."""


def test_a_time_is_iso_8601_in_utc_by_default_or_an_age_and_can_be_read_back() -> None:
    seconds: dict[str, float] = {"-90s": -90, "-30m": -1_800, "-2h": -7_200, "-7d": -604_800, " -1w ": -604_800}
    seconds |= {"2027-01-15T08:00:00Z": 0, "2027-01-15T08:00": 0, "2027-01-15T09:00:00+01:00": 0}
    seconds |= {"2027-01-15": -8 * 3600, "2027-01-15 08:00:00.250": 0.25}
    found = {text: (parse_time(text, NOW) - NOW * 1000) / 1000 for text in seconds}
    assert found == seconds
    for text in ("", "2h", "-2", "-2y", "--2h", "-9999999w", "yesterday", "1800000000", "2027-13-01"):
        with pytest.raises(NotATime, match="ISO 8601"):
            parse_time(text, NOW)
    assert show_time(round(NOW * 1000) + 5) == "2027-01-15T08:00:00.005Z"
    assert parse_time(show_time(1_800_000_000_005), NOW) == 1_800_000_000_005
