"""A server's answers to jobs without a question: any bytes give one row for each text, or an engine's error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import Job
from workers.engines.base import EngineError, EngineFailed, EngineUnavailable, GenerationRequest, RequestRejected
from workers.engines.online.turns import parted
from workers.engines.openai_http.answers import TryAgain, outcome
from workers.engines.openai_http.dialect import Dialect
from workers.engines.openai_http.pooling import SERVER_ENDPOINTS
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.pooling import PoolingInput

JOBS: dict[str, dict[str, Any]] = {
    "embed": {"embed": ["one", "two"], "dimensions": 3},
    "rerank": {"rerank": {"query": "number", "documents": ["one", "two"]}},
    "score": {"score": {"queries": ["number"], "documents": ["one", "two"]}},
    "classify": {"classify": ["one", "two"]},
}
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.floats() | st.lists(st.floats(), max_size=3) | NOISE
ROWS = st.fixed_dictionaries(
    {"index": st.integers(-1, 2)},
    optional={
        **dict.fromkeys(("embedding", "relevance_score", "score", "probs"), NUMBERS),
        "label": NOISE,
    },
)
ANSWERS = NOISE | st.fixed_dictionaries(
    {}, optional={"data": st.lists(ROWS, max_size=3), "results": st.lists(ROWS, max_size=3), "usage": NOISE}
)


def asked(field: str) -> GenerationRequest:
    return GenerationRequest("r1", None, None, 512, None, pooling=PoolingInput.of(Job.model_validate(JOBS[field])))


def answered(field: str, document: object, status: int = 200) -> Any:
    return outcome(asked(field), "path", status, {}, json.dumps(document).encode(), 0.0, is_usual=False)


def vector(index: int, *numbers: float) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": numbers}


def test_every_kind_has_an_endpoint() -> None:
    assert [*SERVER_ENDPOINTS] == [*JOBS]


def test_the_server_is_asked_for_numbers_and_its_embeddings_are_put_into_the_texts_order() -> None:
    dialect = Dialect("e5", OpenAISettings())
    assert (dialect.path(asked("embed")), dialect.body(asked("embed"))) == (
        "embeddings",
        {"model": "e5", "input": ["one", "two"], "encoding_format": "float", "dimensions": 3},
    )
    completion = answered("embed", {"data": [vector(1, 0.5), vector(0, -1.0)], "usage": {"prompt_tokens": 7}})
    assert completion.pooled.rows == ((-1.0,), (0.5,))
    assert (completion.prompt_tokens, completion.completion_tokens, completion.finish_reason) == (7, 0, "stop")


@pytest.mark.parametrize("data", [[vector(0, 1.0)], [vector(0, 1.0), vector(0, 1.0)], [vector(0, 1.0), vector(2, 1.0)]])
def test_an_answer_without_one_embedding_for_each_text_is_a_failure(data: object) -> None:
    with pytest.raises(EngineFailed):
        answered("embed", {"data": data})


@given(st.sampled_from([*JOBS]), ANSWERS, st.sampled_from([200, 200, 400, 404]))
def test_any_answer_is_a_row_for_each_text_or_an_engine_s_error(field: str, document: object, status: int) -> None:
    try:
        found = answered(field, document, status)
    except EngineError:
        return
    assert isinstance(found, TryAgain) or (len(found.pooled.rows) == 2 and all(found.pooled.rows))


@pytest.mark.parametrize("field", JOBS)
def test_a_server_or_an_engine_without_the_kind_refuses_its_field(field: str) -> None:
    with pytest.raises(RequestRejected, match=rf"{field}: the server has no /\w+, so its model gives no"):
        answered(field, {"detail": "Not Found"}, 404)
    with pytest.raises(RequestRejected, match=f"{field}: this engine gives no"):
        parted(asked(field))
    with pytest.raises(RequestRejected, match=f"{field}: too long"):
        answered(field, {"error": {"message": "too long", "param": "input"}}, 400)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_question_is_refused_by_a_server_that_only_embeds_or_ranks(api: str) -> None:
    """Without the refusal, the job would wait until its deadline, and many such jobs would fill the worker's window."""
    dialect = Dialect("bge", OpenAISettings.model_validate({"api": api}))
    question = GenerationRequest("r1", "Is it?", None, 8, None)

    def ask() -> object:
        return outcome(question, dialect.path(question), 404, {}, b"", 0.0, is_usual=dialect.is_usual(question))

    with pytest.raises(EngineUnavailable):
        ask()
    dialect.found("../rerank")
    with pytest.raises(RequestRejected, match=r"prompt: the server has no /[a-z/]+, so its model answers no question"):
        ask()
    dialect.found(dialect.path(question))
    with pytest.raises(EngineUnavailable):
        ask()
