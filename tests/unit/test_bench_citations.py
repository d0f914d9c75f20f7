"""The bench of citations reads the files of public sets, and names a file that is not such a set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import citations
from bench.citations import load_public

SICK = """pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment
1\tThe old bridge is not open\tThe old bridge is open\t4.1\tCONTRADICTION
2\tThe "old" bridge is open\tThe old bridge is open\t4.8\tENTAILMENT
3\tThe old bridge is open\tThe old bridge is long\t3.0\tNEUTRAL
"""
FEVER = [
    {
        "label": "SUPPORTS",
        "evidence": "The mill -LRB- built in 1871 -RRB- ground rye .",
        "claim": "The mill ground rye .",
    },
    {"label": "REFUTES", "evidence": "The mill ground rye .", "claim": "The mill ground barley and rye in Osby ."},
    {"label": "REFUTES", "evidence": "The mill ground rye .", "claim": "The mill ground rye slowly ."},
]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    sick, fever = tmp_path / "SICK.txt", tmp_path / "fever.jsonl"
    sick.write_text(SICK, encoding="utf-8")
    fever.write_text("\n".join(map(json.dumps, FEVER)), encoding="utf-8")
    return [sick, fever]


def test_pairs_of_public_sets_are_read_without_the_neutral_ones(files: list[Path]) -> None:
    sick, fever = map(load_public, files)
    assert [(pair.holds, pair.passage) for pair in sick] == [
        (False, "The old bridge is not open"),
        (True, 'The "old" bridge is open'),
    ]
    assert fever[0].passage == "The mill ( built in 1871 ) ground rye ."


def test_the_table_has_a_row_for_each_file(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["citations", "--data", *map(str, files)])
    citations.main()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert ["SICK.txt", "1", "0 (0%)", "1", "0 (0%)"] in rows
    assert ["fever.jsonl", "2", "1 (50%)", "1", "0 (0%)"] in rows


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "{"), ("a.jsonl", "{}"), ("a.txt", "a\tb\n1\t2\n")])
def test_any_other_file_ends_the_bench_with_a_usage_error(
    tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["citations", "--data", str(tmp_path / name)])
    with pytest.raises(SystemExit) as ended:
        citations.main()
    assert ended.value.code == 2
    assert "--data" in capsys.readouterr().err
