"""Requests without a question, sent to a server: the path, the body and the answer of each kind, as one table.

Sources: OpenAI's API reference, "Create embeddings"; the pooling APIs of `vllm serve` (0.32) for the other kinds. Jina
and Cohere have the same body and answer of `/rerank`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field

from schemas.bounded import BoundedModel
from schemas.job import MAX_DIMENSIONS
from schemas.kinds import CLASSIFY, EMBED, MAX_COMPARED, RERANK, SCORE
from schemas.result import Float32
from workers.engines.answers import Usage
from workers.engines.base import Completion, EngineFailed
from workers.engines.pooling import Pooled, PoolingInput

_MOST_NUMBERS = MAX_DIMENSIONS
"""Cap on the dimensions of one embedding, and on the classes of one text."""
_SHOWN_LABEL = 256


class _PoolingRow(BoundedModel):
    index: int = Field(ge=0, lt=MAX_COMPARED)
    embedding: list[Float32] | None = Field(default=None, min_length=1, max_length=_MOST_NUMBERS)
    relevance_score: Float32 | None = None
    score: Float32 | None = None
    probs: list[Float32] | None = Field(default=None, min_length=1, max_length=_MOST_NUMBERS)
    label: str | None = None


class PoolingAnswer(BoundedModel):
    """The fields of an answer that this engine reads."""

    data: list[_PoolingRow] = Field(default_factory=list, max_length=MAX_COMPARED)
    results: list[_PoolingRow] = Field(default_factory=list, max_length=MAX_COMPARED)
    """The rows of /rerank."""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ServerEndpoint:
    """The HTTP endpoint for one kind of job. Its paths are below the server's URL, or beside the `/v1` of that URL."""

    paths: tuple[str, ...]
    """The paths that are tried one after the other, until the server has one of them."""
    body: Callable[[PoolingInput], dict[str, Any]]
    """Returns the request's body, still without the model's name."""
    rows: str
    """The name of the answer's field that has the rows."""
    numbers: str
    """The name of a row's field that has the numbers."""


SERVER_ENDPOINTS: Final[Mapping[str, ServerEndpoint]] = {
    EMBED.field: ServerEndpoint(
        ("embeddings",),
        lambda asked: (
            {"input": [*asked.texts], "encoding_format": "float"}
            | ({"dimensions": asked.dimensions} if asked.dimensions is not None else {})
        ),
        "data",
        "embedding",
    ),
    RERANK.field: ServerEndpoint(
        ("rerank", "../rerank"),
        lambda asked: {"query": asked.queries[0], "documents": [*asked.texts]},
        "results",
        "relevance_score",
    ),
    SCORE.field: ServerEndpoint(  # vLLM takes these older names in each version
        ("score", "../score"), lambda asked: {"text_1": [*asked.queries], "text_2": [*asked.texts]}, "data", "score"
    ),
    CLASSIFY.field: ServerEndpoint(  # vLLM has the second path
        ("classify", "../classify"), lambda asked: {"input": [*asked.texts]}, "data", "probs"
    ),
}
"""Maps the field of each kind of job to the server's endpoint for the kind."""


def completion_of(asked: PoolingInput, body: bytes) -> Completion:
    """Return the answer with its rows in the texts' order.

    Raises ValidationError for an unreadable answer, and EngineFailed unless the answer has one row for each text.
    """
    endpoint, answer = SERVER_ENDPOINTS[asked.kind.field], PoolingAnswer.model_validate_json(body)
    found: list[_PoolingRow] = getattr(answer, endpoint.rows)
    by_index = {row.index: row for row in found}
    numbers = {index: getattr(row, endpoint.numbers) for index, row in by_index.items()}
    if sorted(by_index) != [*range(len(asked.texts))] or len(found) != len(asked.texts) or None in numbers.values():
        raise EngineFailed(f"the server did not answer each text with its part of the {asked.kind.answer}")
    indices = range(len(asked.texts))
    rows = tuple(tuple(each) if isinstance(each, list) else (each,) for each in map(numbers.__getitem__, indices))
    labels = tuple((by_index[index].label or "")[:_SHOWN_LABEL] or None for index in indices)
    usage = answer.usage or Usage()
    pooled = Pooled(rows, labels if asked.kind is CLASSIFY else ())
    return Completion("", "stop", usage.prompt_tokens, 0, pooled=pooled)
