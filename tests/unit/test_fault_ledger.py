"""The fault ledger's judge: lost, doubled, repeated and late jobs are told apart, and recovery is counted."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from bench.faults import __main__ as ledger
from bench.faults.__main__ import CAUSES, CELLS, HEAD, known
from bench.faults.judge import LATE_SECONDS, Job, Judged, judge
from bench.result import Result, Table

BEGAN, ENDED = 1_000.0, 1_060.0


def job(due: float, seconds: float | None = 0.5, *more: tuple[float, str], outcomes: int = 1) -> Job:
    """An accepted job that was called back after `seconds`, or never; `more` are its further callbacks."""
    callbacks = [] if seconds is None else [(due + seconds, "msg")]
    return Job(due, due + 0.1, ["succeeded"] * outcomes, [*callbacks, *more])


WELL = job(BEGAN - 5)
LATE = job(BEGAN + 10, 60.0)
REFUSED = Job(ENDED + 2)
NOTHING = Judged(1, 0, 0, 0, 0, 0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("jobs", "judged"),
    [
        pytest.param([WELL], NOTHING, id="well"),
        pytest.param([job(BEGAN, None)], Judged(1, 0, 0, 1, 0, 0, 0.0, None), id="a result without a callback is lost"),
        pytest.param([job(BEGAN, outcomes=0)], Judged(1, 0, 0, 1, 0, 0, 0.5, None), id="a callback without a result"),
        pytest.param([Job(BEGAN)], Judged(0, 1, 0, 0, 0, 0, 0.0, 0.0), id="a refused job is not lost"),
        pytest.param([job(BEGAN, outcomes=2)], Judged(1, 0, 0, 0, 1, 0, 0.5, 0.0), id="two results"),
        pytest.param([job(BEGAN, 0.5, (BEGAN + 1, "two"))], Judged(1, 0, 0, 0, 1, 0, 0.5, 0.0), id="two events"),
        pytest.param([job(BEGAN, 0.5, (BEGAN + 9, "msg"))], Judged(1, 0, 0, 0, 0, 1, 0.5, 0.0), id="one event twice"),
        pytest.param([LATE, WELL], Judged(2, 0, 0, 0, 0, 0, 60.0, 10.0), id="late until 10 s after the end"),
        pytest.param([WELL, REFUSED], Judged(1, 1, 0, 0, 0, 0, 0.5, 2.0), id="refused until 2 s after the end"),
        pytest.param(
            [job(ENDED + 30, LATE_SECONDS)], Judged(1, 0, 0, 0, 0, 0, LATE_SECONDS, 0.0), id="not late at the limit"
        ),
        pytest.param(
            [Job(BEGAN, None, ["succeeded"] * 2, [])], Judged(0, 1, 0, 0, 1, 0, 0.0, 0.0), id="refused, and yet doubled"
        ),
        pytest.param(
            [Job(BEGAN, BEGAN, ["failed"], [(BEGAN + 1, "msg")])], Judged(1, 0, 1, 0, 0, 0, 1.0, 0.0), id="failed"
        ),
    ],
)
def test_a_cell_is_judged_from_its_jobs(jobs: list[Job], judged: Judged) -> None:
    assert judge(jobs, ENDED) == judged


def test_cells_that_do_not_run_keep_their_rows_and_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = Result("", "", "", "", 0.0)
    result.tables.append(Table("", list(HEAD), [["Redis", "away", *"123456789", "abc"]]))
    result.samples["Redis away"] = [0.5, -1.0]
    result.write(tmp_path / "evidence.json")
    monkeypatch.setattr(ledger, "EVIDENCE", tmp_path / "evidence.json")
    monkeypatch.setattr(ledger, "LEDGER", tmp_path / "ledger.json")
    assert known() == {"Redis away": (["Redis", "away", *"123456789", "abc"], [0.5, -1.0])}
    (tmp_path / "ledger.json").write_text('{"S3 hung": [["S3"], [2.0]]}')
    assert known() == {"S3 hung": (["S3"], [2.0])}


def test_each_cell_has_a_name_of_its_own_and_cells_with_the_same_needs_follow_each_other() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    groups = [needs for needs, _ in groupby(cell.needs for cell in CELLS)]
    assert sorted(needs for needs in groups if needs) == sorted({needs for needs in groups if needs})


def test_cells_that_are_missed_or_have_not_run_are_named_with_their_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(ledger, "table", lambda head, rows: shown.append(rows))
    rows = {cell.name: [cell.process, cell.fault, *"00000", "0.0", "0", "none: …", "1", "abc"] for cell in CELLS}
    lost, unrun = "PostgreSQL failed over with lag", "worker 130,000 hostile records"
    rows[lost][HEAD.index("lost")] = "1"
    del rows[unrun]
    ledger.report({name: (row, [0.5]) for name, row in rows.items()})
    assert [cause for _, _, cause in shown[1]] == ["Not run yet.", CAUSES[lost]]
