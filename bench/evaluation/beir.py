"""Ranks the documents of a public test collection by our BM25 and by the library bm25s, and compares both.

A collection is a folder in the format of BEIR (Thakur et al., "BEIR: A Heterogeneous Benchmark for Zero-shot
Evaluation of Information Retrieval Models", 2021):

    corpus.jsonl    `_id`, `title` (may be missing) and `text` of each document
    queries.jsonl   `_id` and `text` of each query
    qrels/test.tsv  a header, then the ids of a query and of a document, and their grade, separated by tabs
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bm25s
import Stemmer

from workers.enrichment.choosing.rank import K1, B, split, terms, weights

DEPTH: Final = 10
"""Only this many documents from the top of a ranking count."""
PASSAGE_CHARS: Final = 600

Scores = Callable[[str], Sequence[float]]
"""Returns the score of each document for a query."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A test collection. `grades` has a grade above 0 for each relevant document of each judged query."""

    documents: Mapping[str, tuple[str, str]]
    """Title and text of each document, by id."""
    queries: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]


def load_collection(folder: Path) -> Collection:
    """Return the collection in this folder, with the queries that have a relevant document.

    Raises OSError for a missing file, ValueError for a line that is no JSON or no grade, or without any relevant
    document, and KeyError for a missing field or an unknown query.
    """
    documents = {one["_id"]: (one.get("title") or "", one["text"]) for one in _lines(folder / "corpus.jsonl")}
    queries = {one["_id"]: one["text"] for one in _lines(folder / "queries.jsonl")}
    grades: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as judged:
        for row in csv.DictReader(judged, delimiter="\t", quoting=csv.QUOTE_NONE):
            if int(row["score"]) > 0:
                grades.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    if not grades:
        raise ValueError(f"{folder}/qrels/test.tsv has no relevant document")
    return Collection(documents, {name: queries[name] for name in grades}, grades)


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def compared(collection: Collection) -> list[tuple[str, float]]:
    """Return the name of each ranking, and its mean nDCG over the queries."""
    return [(name, _mean_ndcg(collection, make(collection))) for name, make in _RANKINGS.items()]


def ndcg(ranked: Sequence[str], grades: Mapping[str, int]) -> float:
    """Return the normalised discounted cumulative gain of the first DEPTH documents, from 0 to 1.

    The gain is the grade, as in trec_eval (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR
    techniques", 2002).
    """
    best = sorted(grades.values(), reverse=True)
    return _dcg([grades.get(name, 0) for name in ranked]) / _dcg(best)


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains[:DEPTH], start=1))


def _mean_ndcg(collection: Collection, scores: Scores) -> float:
    names = list(collection.documents)
    total = 0.0
    for query, text in collection.queries.items():
        by_name = dict(zip(names, scores(text), strict=True))
        ranked = sorted(names, key=lambda name: (-by_name[name], name))
        total += ndcg(ranked[:DEPTH], collection.grades[query])
    return total / len(collection.queries)


def _ours(collection: Collection) -> Scores:
    counted = [Counter(terms(f"{title} {text}")) for title, text in collection.documents.values()]
    return lambda query: weights(query, counted)


def _our_passages(collection: Collection) -> Scores:
    """Score each document by its best passage, as enrichment does."""
    counted, of = [], []
    for at, (title, text) in enumerate(collection.documents.values()):
        for passage in split(text, PASSAGE_CHARS) or [""]:
            counted.append(Counter(terms(f"{title} {passage}")))
            of.append(at)

    def scores(query: str) -> Sequence[float]:
        best = [0.0] * len(collection.documents)
        for at, weight in zip(of, weights(query, counted), strict=True):
            best[at] = max(best[at], weight)
        return best

    return scores


def _bm25s(collection: Collection) -> Scores:
    """Rank by bm25s with its own English tokens: lower case, without stop words, stemmed."""

    def tokens(texts: Sequence[str]) -> list[list[str]]:
        stemmer = Stemmer.Stemmer("english")
        found: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        return found

    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    index.index(tokens([f"{title} {text}" for title, text in collection.documents.values()]), show_progress=False)

    def scores(query: str) -> Sequence[float]:
        known = [token for token in tokens([query])[0] if token in index.vocab_dict]
        found: list[float] = index.get_scores(known).tolist() if known else [0.0] * len(collection.documents)
        return found

    return scores


_RANKINGS: Final[Mapping[str, Callable[[Collection], Scores]]] = {
    "ours, whole documents": _ours,
    f"ours, best passage of {PASSAGE_CHARS} code points": _our_passages,
    "bm25s, whole documents": _bm25s,
}
