"""Request bodies and answers of the endpoints for texts: /v1/embeddings, /v1/rerank, /v1/score and /v1/classify.

Sources: OpenAI's API reference, "Create embeddings", and the pooling APIs of `vllm serve` for the other three. Jina and
Cohere have the same body and answer of /v1/rerank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.kinds import CLASSIFY, EMBED, RERANK, SCORE, JobKind
from schemas.problems import Problem, UnusableLine
from schemas.result import Result

EMBEDDINGS: Final = "/v1/embeddings"


@dataclass(frozen=True, slots=True)
class TextEndpoint:
    """The endpoint of one kind of job."""

    kind: JobKind
    url: str
    title: str
    """The endpoint in two words, for its documentation."""
    fields: Callable[[TextEndpoint, Mapping[str, Any]], dict[str, Any]]
    """Returns the job's fields for a body. Raises UnusableLine."""
    answer: Callable[[Result], dict[str, Any]]
    """Returns the members of the answer to a job that succeeded, without `model` and `usage`."""
    members: tuple[str, ...]
    """The members of a body that only this endpoint has."""
    input: str | None = None
    """The body's member with the texts; None if the body itself has the members of the job's field."""
    synonyms: Mapping[str, str] = field(default_factory=dict)
    """Maps a member's first name to its second name, which is read from a body that lacks the first."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """The names by which other endpoints call a member, each with the member's name at this endpoint."""

    @property
    def name(self) -> str:
        """The endpoint in one word, for the names of its operation and schemas, such as `Embed`."""
        return self.kind.field.capitalize()

    def place(self, path: Sequence[str], body: Mapping[str, Any]) -> tuple[str, ...]:
        """Translate the path of a member in the job's field to the member's path in the body."""
        if self.input is not None:
            return (self.input, *path)
        return (self.named(path[0], body), *path[1:]) if path else ()

    def named(self, name: str, body: Mapping[str, Any]) -> str:
        """Return the member's name in this body."""
        other = self.synonyms.get(name, name)
        return other if body.get(name) is None and body.get(other) is not None else name


def _listed(endpoint: TextEndpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    texts = body.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UnusableLine(Problem("body.input", "is required and is a string or a list of strings"))
    return {endpoint.kind.field: texts, **{name: body.get(name) for name in endpoint.kind.options}}


def _compared(endpoint: TextEndpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    model = endpoint.kind.model
    members = {name: body.get(endpoint.named(name, body)) for name in (model.model_fields if model is not None else ())}
    asked = {name: value if name == "query" else _texts(value) for name, value in members.items() if value is not None}
    if type(asked.get("top_n")) is int and asked["top_n"] == 0:  # 0 means all documents, as in vLLM
        del asked["top_n"]
    return {endpoint.kind.field: asked}


def _texts(value: object) -> object:
    """Return one text as a list, documents `{"text": …}` (Jina, Cohere) as texts, and any other value unchanged."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return value
    return [each["text"] if isinstance(each, dict) and each.keys() == {"text"} else each for each in value]


def _embeddings(result: Result) -> dict[str, Any]:
    rows = enumerate(result.embeddings or ())
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": embedding} for index, embedding in rows],
    }


def _ranks(result: Result) -> dict[str, Any]:
    ranks = result.ranks or ()
    return {
        "id": f"rerank-{result.job_id}",
        "results": [{"index": rank.index, "relevance_score": rank.score} for rank in ranks],
    }


def _scores(result: Result) -> dict[str, Any]:
    rows = enumerate(result.scores or ())
    data = [{"object": "score", "index": index, "score": score} for index, score in rows]
    return {"id": f"score-{result.job_id}", "object": "list", "created": result.created_at, "data": data}


def _labels(result: Result) -> dict[str, Any]:
    data = [
        {"index": index, "label": each.label, "probs": each.probabilities, "num_classes": len(each.probabilities)}
        for index, each in enumerate(result.labels or ())
    ]
    return {"id": f"classify-{result.job_id}", "object": "list", "created": result.created_at, "data": data}


_INPUT = dict.fromkeys(("prompt", "messages", "texts", "documents"), "input")
ENDPOINTS: Final = {
    endpoint.url: endpoint
    for endpoint in (
        TextEndpoint(
            EMBED,
            EMBEDDINGS,
            "Embed texts",
            _listed,
            _embeddings,
            ("input", "dimensions"),
            input="input",
            elsewhere={**_INPUT, "embed": "input"},
        ),
        TextEndpoint(
            RERANK,
            "/v1/rerank",
            "Rank documents",
            _compared,
            _ranks,
            ("query", "documents", "top_n"),
            elsewhere={"queries": "query", "input": "documents", "texts": "documents", "top_k": "top_n"},
        ),
        TextEndpoint(
            SCORE,
            "/v1/score",
            "Score pairs",
            _compared,
            _scores,
            ("queries", "documents", "text_1", "text_2"),
            synonyms={"queries": "text_1", "documents": "text_2"},
            elsewhere={"query": "queries", "input": "documents", "texts": "documents", "items": "documents"},
        ),
        TextEndpoint(
            CLASSIFY,
            "/v1/classify",
            "Classify texts",
            _listed,
            _labels,
            ("input",),
            input="input",
            elsewhere={**_INPUT, "classify": "input"},
        ),
    )
}
"""The endpoints by their URLs: one row for each kind."""
