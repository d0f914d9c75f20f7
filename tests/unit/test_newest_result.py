"""The newest of a job's results counts, in any order of reading partitions, and each job has one line."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.answers import Answers, as_line
from console.output import written
from producers.newest import Moment, Moments, superseded
from producers.results import Settled
from producers.scan import StoredPlace
from schemas.codec import read_result
from schemas.outcome import Outcome
from schemas.result import Result, ResultError

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
    error = None if outcome is Outcome.SUCCEEDED else ResultError(code="x", message="no")
    result = Result(job_id=job_id, outcome=outcome, error=error, created_at=1)
    return Settled("acme", result, Moment(at_ms, partition, offset))


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
    monkeypatch.setattr("console.answers.without_lines", lambda out, numbers: False)
    answers = Answers(dict.fromkeys("abc"), pipe, as_line)
    answers.take(CAME[:4], "acme")
    answers.settle()
    answers.tell()
    lines = [read_result(line.encode()) for line in pipe.getvalue().splitlines()]
    assert [(line.job_id, line.outcome) for line in lines if line.job_id == "a"][-1] == ("a", "succeeded")
    assert capsys.readouterr().err.splitlines() == [
        "postback: 1 jobs were answered again meanwhile: the last line of each counts",
        "postback: c failed: no",
    ]
