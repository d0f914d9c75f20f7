"""The table KINDS: the kinds of job that answer with numbers about texts instead of a text.

Each layer has one table with a row for each kind: `kind_bodies` (requests and answers over HTTP), the engines
(`echo`, `openai_http/pooling`, `vllm/pooling`) and `workers/inference/results`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from schemas.bounded import WireModel

MAX_EMBEDDED: Final = 64
"""The maximum number of texts of one job for embeddings.

64 vectors of 1,024 numbers take some 800 KiB of a result's 900 KiB.
"""
MAX_COMPARED: Final = 1000
"""The maximum number of documents that one job ranks or scores."""
MAX_CLASSIFIED: Final = 256
"""The maximum number of texts of one job for labels.

256 texts with 150 classes take some 800 KiB of a result's 900 KiB.
"""

SomeText = Annotated[str, StringConstraints(min_length=1)]


class Rerank(WireModel):
    """Documents to be ranked by their relevance to a query."""

    query: SomeText
    """The query."""
    documents: list[SomeText] = Field(min_length=1, max_length=MAX_COMPARED)
    """The documents. The result's `ranks` name each document by its index."""
    top_n: int | None = Field(default=None, ge=1, le=MAX_COMPARED)
    """How many documents the result has at most, the best ones. If absent, the result has all documents."""

    @property
    def queries(self) -> list[str]:
        """The one query for all documents, as a list."""
        return [self.query]


class Score(WireModel):
    """Pairs of a query and a document, to be scored by the document's relevance."""

    queries: list[SomeText] = Field(min_length=1, max_length=MAX_COMPARED)
    """One query for all documents, or one for each document."""
    documents: list[SomeText] = Field(min_length=1, max_length=MAX_COMPARED)
    """The documents. The result's `scores` are in the same order."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.queries) not in (1, len(self.documents)):
            raise ValueError("`queries` has neither one query nor one for each of `documents`")
        return self


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind of job."""

    field: str
    """The job's field with the texts, which replaces `prompt` and `messages`."""
    answer: str
    """The result's field with the answer."""
    model: type[WireModel] | None = None
    """The pydantic model of the job's field; None for a list of texts."""
    options: tuple[str, ...] = ()
    """The job's further fields that only this kind has."""


EMBED: Final = JobKind("embed", "embeddings", options=("dimensions",))
RERANK: Final = JobKind("rerank", "ranks", Rerank)
SCORE: Final = JobKind("score", "scores", Score)
CLASSIFY: Final = JobKind("classify", "labels")
KINDS: Final = (EMBED, RERANK, SCORE, CLASSIFY)

ASKED: Final = ("prompt", "messages", *(kind.field for kind in KINDS))
"""The job's fields with a question or texts."""
BY_REFERENCE: Final = "payload_url"
"""The job's field with the URL of a document that has one of ASKED."""
QUESTIONS: Final = (*ASKED, BY_REFERENCE)
"""Each job has exactly one of these fields."""
