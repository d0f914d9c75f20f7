"""Formats the answers of jobs without a question for a terminal; a table has one row for each kind of job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from schemas.kinds import CLASSIFY, EMBED, KINDS, RERANK, SCORE
from schemas.result import Label, Rank, Result


def in_words(result: Result) -> str | None:
    """Return the answer as lines of text; None for a result without numbers."""
    answers = ((kind, getattr(result, kind.answer)) for kind in KINDS)
    return next((_IN_WORDS[kind.field](answer) for kind, answer in answers if answer is not None), None)


def _embeddings(rows: list[list[float]]) -> str:
    return f"{len(rows)} embeddings of {len(rows[0]) if rows else 0} numbers"


def _ranks(ranks: list[Rank]) -> str:
    return "\n".join(f"{rank.score:.4g}  document {rank.index}" for rank in ranks)


def _scores(scores: list[float]) -> str:
    return "\n".join(f"{score:.4g}  document {index}" for index, score in enumerate(scores))


def _labels(labels: list[Label]) -> str:
    return "\n".join(_label(index, each) for index, each in enumerate(labels))


def _label(index: int, label: Label) -> str:
    likeliest = max(label.probabilities, default=0.0)
    number = label.probabilities.index(likeliest) if label.probabilities else 0
    return f"{likeliest:.4g}  text {index}: {label.label or f'class {number}'}"


_IN_WORDS: Final[dict[str, Callable[[Any], str]]] = {
    EMBED.field: _embeddings,
    RERANK.field: _ranks,
    SCORE.field: _scores,
    CLASSIFY.field: _labels,
}
