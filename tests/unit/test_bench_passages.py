"""The bench of passages ranks a public collection in BEIR's format, and our BM25 agrees with that of bm25s."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import bm25s
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import passages
from bench.evaluation.beir import compared, load_collection, ndcg
from tests.drawn import drawn
from workers.enrichment.choosing.rank import K1, B, terms, weights

DOCUMENTS = [
    {"_id": "d1", "title": "Mills", "text": "The mill of Osby ground rye and wheat."},
    {"_id": "d2", "text": "The harbour of Tarnby froze in January."},
    {"_id": "d3", "title": "Bridges", "text": "A bridge of oak crossed the river near the mill."},
]
QUERIES = [
    {"_id": "q1", "text": "When did the harbour freeze?"},
    {"_id": "q2", "text": "Which grain did the mill grind?"},
    {"_id": "q3", "text": "Who paid for the bridge?"},
]
GRADES = "query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t2\nq2\td3\t1\nq3\td1\t0\n"
_WORDS = ["mill", "river", "oak", "rye", "osby", "frost", "harbour"]
_TEXTS = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    for name, rows in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text(GRADES, encoding="utf-8")
    return tmp_path


@settings(max_examples=drawn(60))
@given(st.lists(_TEXTS, min_size=1, max_size=6), _TEXTS)
def test_our_weights_are_those_of_bm25s(documents: Sequence[Sequence[str]], query: Sequence[str]) -> None:
    index = bm25s.BM25(method="lucene", k1=K1, b=B, dtype="float64")
    index.index([list(words) for words in documents], show_progress=False)
    known = sorted({word for word in query if any(word in words for words in documents)})
    ours = weights(" ".join(query), [Counter(terms(" ".join(words))) for words in documents])
    theirs = index.get_scores(known).tolist() if known else [0.0] * len(documents)
    assert ours == pytest.approx([(K1 + 1) * score for score in theirs])


def test_ndcg_is_the_gain_of_the_ranking_over_that_of_the_best_one() -> None:
    assert ndcg(["a", "b"], {"a": 2, "b": 1}) == 1.0
    assert ndcg(["c", "a"], {"a": 1}) == pytest.approx(0.6309, abs=1e-4)  # 1 / log2(3)
    assert ndcg(["c"] * 10 + ["a"], {"a": 1}) == 0.0


def test_only_queries_with_a_relevant_document_are_asked(folder: Path) -> None:
    collection = load_collection(folder)
    assert list(collection.queries) == ["q1", "q2"]
    assert [value for _, value in compared(collection)] == [1.0, 1.0, 1.0]


def test_a_document_that_does_not_answer_lowers_the_gain_of_a_ranking(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text(GRADES.replace("q1\td2", "q1\td1"), encoding="utf-8")
    assert all(value < 1 for _, value in compared(load_collection(folder)))


def test_the_bench_prints_a_row_for_each_ranking(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["passages", "--data", str(folder)])
    passages.main()
    printed = capsys.readouterr().out
    assert "3 documents, 2 queries" in printed
    assert sum("1.000" in line for line in printed.splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus.jsonl", "{"),
        ("corpus.jsonl", "{}"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}'),
        ("qrels/test.tsv", "a\tb\n1\t2\n"),
        ("qrels/test.tsv", GRADES.replace("\t2\n", "\tmuch\n")),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n"),
        ("corpus.jsonl", None),
    ],
)
def test_a_folder_that_is_no_collection_ends_the_bench_with_a_usage_error(
    folder: Path,
    name: str,
    content: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["passages", "--data", str(folder)])
    with pytest.raises(SystemExit) as ended:
        passages.main()
    assert ended.value.code == 2
    assert f"--data {folder}" in capsys.readouterr().err
