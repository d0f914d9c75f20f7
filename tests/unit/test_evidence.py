"""The page of evidence is made from the benches' files, a stopped run goes on, and README's figures are theirs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench import evidence, result
from bench.evidence import FOLDER, PAGE, Question, has_gpu, own_pages, page, questions, run, status_of
from bench.faults.__main__ import CELLS
from bench.result import ROOT, Result, Row, Table

MOST_WORDS = 3_000
SITTING_SECONDS = 80 * 60
SOURCES = {
    "Submit to verified callback": ("latency",),
    "Exactly once": ("end-to-end",),
    "A vLLM worker": ("engine",),
    "A batch over HTTP": ("gateway",),
    "Contradictions": ("support",),
}
"""The file that README's line has its figures from, by the line's beginning."""
FIGURE = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def test_the_page_is_rendered_from_the_files_and_short() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(FOLDER), "run scripts/evidence --render"
    assert len(re.findall(r"[^\s|]*\w[^\s|]*", page(FOLDER))) <= MOST_WORDS


def test_the_page_of_the_fault_ledger_has_a_row_for_each_cell() -> None:
    text = PAGE.with_name("evidence-faults.md").read_text(encoding="utf-8")
    assert {"evidence-faults.md": text} == own_pages(FOLDER), "run scripts/evidence --render"
    assert [cell.name for cell in CELLS if f"| {cell.process} | {cell.fault} |" not in text] == []


def test_each_file_answers_a_question_and_each_bench_exists() -> None:
    assert {file.name for file in FOLDER.iterdir()} <= {question.file for question in questions()}
    assert [each.run for each in questions() if each.part and find_spec(each.run) is None] == []
    assert {each.part for each in questions()} == {"core", "peers", "gpu", "mutations", "faults", ""}


def test_a_question_without_figures_is_named_as_not_run(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "## Stage\n\n`python -m bench.stage` has not run yet." in text


def test_the_figures_of_the_readme_are_in_the_files() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Figures")[2].partition("##")[0]
    lines = re.findall(r"^- (.*)$", section, re.MULTILINE)
    assert len(lines) == len(SOURCES)
    for line in lines:
        [names] = [names for begins, names in SOURCES.items() if line.startswith(begins)]
        results = [Result.read(FOLDER / f"{name}.json") for name in names]
        texts = [f"{row.what} {row.target} {row.result}" for result in results for row in result.rows]
        texts += [table.title for result in results for table in result.tables]
        exact = FIGURE.findall(" ".join(texts))
        assert set(FIGURE.findall(line)) <= {*exact, *(figure.partition(".")[0] for figure in exact)}, line
        assert ("**missed**" in line) == any("missed" in row.verdict for result in results for row in result.rows), line


def test_a_result_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    written = Result("python -m bench.x", "2026-12-01T10:00:00Z", "a machine, 2 cores", "abc", 0.5, {"python": "3.11"})
    written.rows.append(Row("p50", "≤ 60 ms", "18.9 ms", "met"))
    written.tables.append(Table("title", ["a"], [["1"]]))
    written.samples["ms"] = [1.5]
    written.write(tmp_path / "x.json")
    assert Result.read(tmp_path / "x.json") == written


@pytest.fixture
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Run fake benches instead of processes; `ran` has their modules.

    `failing` has the exit statuses of those that fail, None for no end in time, and those of `silent` write no figure.
    """
    benches = SimpleNamespace(ran=[], failing={}, silent=set(), commit="abc")

    def process(command: list[str], seconds: float) -> int | None:
        assert seconds == 2 * SECONDS
        benches.ran.append(command[2])
        rows = [] if command[2] in benches.silent else [Row("p50", "≤ 60 ms", "18.9 ms", "met")]
        Result("", "", "", benches.commit, 0.0, rows=rows).write(Path(command[-1]))
        status: int | None = benches.failing.get(command[2], 0)
        return status

    monkeypatch.setattr(evidence, "status_of", process)
    monkeypatch.setattr(evidence, "commit", lambda: benches.commit)
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    return benches


SECONDS = 30.0
CHOSEN = [Question(name, "", part="core", run=name.lower(), seconds=SECONDS) for name in ("One", "Two", "Three")]


def test_a_run_repeats_only_what_is_missing_or_of_another_commit(benches: SimpleNamespace) -> None:
    benches.failing = {"two": 1}
    assert run(CHOSEN, quick=False) == ["two (exit status 1)"]
    benches.failing = {}
    assert run(CHOSEN, quick=False) == []
    assert benches.ran == ["one", "two", "three", "two"]
    benches.commit = "def"
    run(CHOSEN, quick=False)
    assert benches.ran[4:] == ["one", "two", "three"]


def test_a_bench_without_an_end_or_a_figure_is_named_and_the_next_one_runs(benches: SimpleNamespace) -> None:
    benches.failing, benches.silent = {"one": None}, {"two"}
    assert run(CHOSEN, quick=False) == ["one (no end in time)", "two (no figures)"]
    assert benches.ran == ["one", "two", "three"]


def test_a_bench_that_hangs_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    child = f"import os, pathlib, time; pathlib.Path({str(begun)!r}).write_text(str(os.getpid())); time.sleep(600)"
    bench = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    seconds = 1.0
    while not begun.exists() or not begun.read_text():  # a slow machine may need longer to start two interpreters
        assert status_of([sys.executable, "-c", bench], seconds) is None
        seconds *= 2
    assert not psutil.pid_exists(int(begun.read_text()))


def test_a_full_run_of_a_part_fits_into_a_sitting() -> None:
    for part in ("core", "peers"):
        assert sum(each.seconds for each in questions() if each.part == part) <= SITTING_SECONDS
    assert [each.name for each in questions() if each.part and not each.seconds] == []


def test_without_a_gpu_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str:
        with pytest.raises(SystemExit) as ended:
            evidence.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", ["evidence", "--gpu", str(tmp_path)])
    assert "has no config.json; give the folder of a model" in told()
    (tmp_path / "config.json").write_text("{}")
    if not (gpu := has_gpu()):
        monkeypatch.setattr(evidence, "has_gpu", lambda: gpu)
        assert "vLLM finds no GPU on this machine, so nothing was measured" in told()


def test_a_full_run_refuses_changed_files(benches: SimpleNamespace) -> None:
    benches.commit = "abc+"
    with pytest.raises(SystemExit, match="Commit them first"):
        run(CHOSEN, quick=False)
    assert benches.ran == []


def test_a_bench_hands_out_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(result, "_run", result._Run())
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(file)])
    result.parsed(argparse.ArgumentParser())
    result.title("A title")
    result.table(("side", "jobs/s"), [("loop", 1_000)])
    result.verdict("p99", 300.0, 250.0, at_least=False, unit=" ms")
    result.samples("p99", [301.0])
    assert "| loop | 1000   |" in capsys.readouterr().out
    kept = json.loads(file.read_text())
    assert kept["tables"] == [{"title": "A title", "head": ["side", "jobs/s"], "rows": [["loop", "1000"]]}]
    assert kept["rows"] == [{"what": "p99", "target": "≤ 250 ms", "result": "300.00 ms", "verdict": "missed"}]
    assert kept["samples"] == {"p99": [300.0, 301.0]}
    assert kept["commit"]
    assert set(kept["versions"]) >= {"python", "confluent-kafka"}
