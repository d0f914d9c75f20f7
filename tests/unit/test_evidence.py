"""The page of evidence is made from the benches' files, a stopped run goes on, and README's figures are theirs."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import evidence, result
from bench.evidence import FOLDER, PAGE, Question, own_pages, page, questions, run
from bench.faults.__main__ import CELLS
from bench.result import ROOT, Result, Row, Table

MOST_WORDS = 3_000
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
    assert len(page(FOLDER).split()) <= MOST_WORDS


def test_the_page_of_the_fault_ledger_has_a_row_for_each_cell() -> None:
    text = PAGE.with_name("evidence-faults.md").read_text(encoding="utf-8")
    assert {"evidence-faults.md": text} == own_pages(FOLDER), "run scripts/evidence --render"
    assert [cell.name for cell in CELLS if f"| {cell.process} | {cell.fault} |" not in text] == []


def test_each_file_answers_a_question_and_each_bench_exists() -> None:
    assert {file.name for file in FOLDER.iterdir()} <= {question.file for question in questions()}
    assert [each.run for each in questions() if each.part and find_spec(each.run) is None] == []
    assert {each.part for each in questions()} == {"core", "peers", "mutations", "faults", ""}


def test_a_question_without_figures_is_named_as_not_run(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "## Stage\n\n`python -m bench.stage` has not run yet." in text


def test_the_figures_of_the_readme_are_in_the_files() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Figures")[2].partition("##")[0]
    lines = re.findall(r"^- (.*)$", section, re.MULTILINE)
    assert len(lines) == len(SOURCES)
    for line in lines:
        [names] = [names for begins, names in SOURCES.items() if line.startswith(begins)]
        rows = [row for name in names for row in Result.read(FOLDER / f"{name}.json").rows]
        known = set(FIGURE.findall(" ".join(f"{row.what} {row.target} {row.result}" for row in rows)))
        assert set(FIGURE.findall(line)) <= known, line
        assert ("**missed**" in line) == any("missed" in row.verdict for row in rows), line


def test_a_result_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    written = Result("python -m bench.x", "2026-12-01T10:00:00Z", "a machine, 2 cores", "abc", 0.5, {"python": "3.11"})
    written.rows.append(Row("p50", "≤ 60 ms", "18.9 ms", "met"))
    written.tables.append(Table("title", ["a"], [["1"]]))
    written.samples["ms"] = [1.5]
    written.write(tmp_path / "x.json")
    assert Result.read(tmp_path / "x.json") == written


@pytest.fixture
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Run fake benches instead of processes; `ran` has their modules, and those of `failing` end with 1."""
    benches = SimpleNamespace(ran=[], failing=set(), commit="abc")

    def process(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        benches.ran.append(command[2])
        Result("", "", "", benches.commit, 0.0).write(Path(command[-1]))
        return subprocess.CompletedProcess(command, 1 if command[2] in benches.failing else 0)

    monkeypatch.setattr("bench.evidence.subprocess.run", process)
    monkeypatch.setattr(evidence, "commit", lambda: benches.commit)
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    return benches


CHOSEN = [Question(name, "", part="core", run=name.lower()) for name in ("One", "Two", "Three")]


def test_a_run_repeats_only_what_is_missing_or_of_another_commit(benches: SimpleNamespace) -> None:
    benches.failing = {"two"}
    assert run(CHOSEN, quick=False) == ["two"]
    benches.failing = set()
    assert run(CHOSEN, quick=False) == []
    assert benches.ran == ["one", "two", "three", "two"]
    benches.commit = "def"
    run(CHOSEN, quick=False)
    assert benches.ran[4:] == ["one", "two", "three"]


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
