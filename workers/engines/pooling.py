"""Requests without a question: texts to embed, score, rank or classify, in one form for every kind of `schemas.kinds`.

vLLM calls the models for these requests pooling models, since such a model pools the hidden states of a text's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from schemas.job import Job
from schemas.kinds import JobKind


@dataclass(frozen=True, slots=True)
class PoolingInput:
    """The texts of a request."""

    kind: JobKind
    texts: tuple[str, ...]
    """The texts to embed or to classify, or the documents to rank or to score."""
    queries: tuple[str, ...] = ()
    """One query for all texts, or one for each text; empty for a kind without queries."""
    dimensions: int | None = None
    """The dimensions of each embedding; None means the model's default."""

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Return a job's texts; None for a job with a question."""
        kind = job.kind
        if kind is None:
            return None
        asked = getattr(job, kind.field)
        if kind.model is None:
            return cls(kind, tuple(asked), dimensions=job.dimensions)
        return cls(kind, tuple(asked.documents), tuple(asked.queries))

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Each text with its query before it."""
        queries = self.queries * len(self.texts) if len(self.queries) == 1 else self.queries
        return zip(queries, self.texts, strict=True)

    @property
    def chars(self) -> int:
        """The number of characters that a model reads; the model reads the query again with each text."""
        queries = sum(map(len, self.queries)) * (len(self.texts) if len(self.queries) == 1 else 1)
        return queries + sum(map(len, self.texts))


@dataclass(frozen=True, slots=True)
class Pooled:
    """The answer: one row of numbers for each text."""

    rows: tuple[tuple[float, ...], ...]
    """An embedding, a score as a row of one number, or the probability of each class."""
    labels: tuple[str | None, ...] = ()
    """The name of each text's likeliest class, None if the model names no classes; empty for other kinds."""
