"""Jobs without a question at a server: each kind's path, body and answer, and the server's refusals and limits."""

from __future__ import annotations

from typing import Any

import pytest

from console.kind_examples import KIND_JOBS
from schemas.job import Job
from tests.integration.openai_http.pooling_server import (
    CLASSES,
    WINDOW,
    JinaServer,
    PoolingServer,
    pooling_engine,
    pooling_url,
)
from tests.integration.openai_http.servers import answers, problem
from workers.engines.base import EngineFailed, EngineUnavailable, GenerationRequest, RequestRejected
from workers.engines.pooling import PoolingInput
from workers.roles.engine_check import check_engine

DOCUMENTS = ["a house", "a long river", "a sea"]
ASKED: dict[str, Any] = {
    "embed": DOCUMENTS,
    "rerank": {"query": "water", "documents": DOCUMENTS, "top_n": 1},
    "score": {"queries": ["water"], "documents": DOCUMENTS},
    "classify": ["well", "no!!", "!!!!"],
}
OF_SERVER: dict[str, tuple[str, dict[str, Any]]] = {
    "embed": ("/v1/embeddings", {"input": DOCUMENTS, "encoding_format": "float"}),
    "rerank": ("/v1/rerank", {"query": "water", "documents": DOCUMENTS}),
    "score": ("/v1/score", {"text_1": ["water"], "text_2": DOCUMENTS}),
    "classify": ("/classify", {"input": ["well", "no!!", "!!!!"]}),
}
ROWS = {
    "embed": ((7.0, -0.5), (12.0, -0.5), (5.0, -0.5)),
    "rerank": ((0.07,), (0.12,), (0.05,)),
    "score": ((7.0,), (12.0,), (5.0,)),
    "classify": ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)),
}


def request(field: str, asked: Any = None) -> GenerationRequest:
    pooling = PoolingInput.of(Job.model_validate({field: asked or ASKED[field]}))
    return GenerationRequest(f"r-{field}", None, None, 512, None, pooling=pooling)


@pytest.mark.parametrize("field", ASKED)
async def test_a_server_of_vllm_answers_each_kind_with_the_rows_in_the_texts_order(field: str) -> None:
    server = PoolingServer()
    async with pooling_engine(server) as engine:
        completion = await engine.generate(request(field))
    path, body = OF_SERVER[field]
    assert server.asked[-1] == (path, {"model": "m1", **body})
    assert completion.pooled is not None
    assert completion.pooled.rows == ROWS[field]
    assert completion.pooled.labels == ((CLASSES[0], CLASSES[0], CLASSES[1]) if field == "classify" else ())
    assert (completion.finish_reason, completion.text, completion.completion_tokens) == ("stop", "", 0)
    assert completion.prompt_tokens == {"embed": 7, "rerank": 10, "score": 10, "classify": 3}[field]


async def test_a_path_beside_v1_is_looked_for_once() -> None:
    server = PoolingServer()
    async with pooling_engine(server) as engine:
        for _ in range(3):
            await engine.generate(request("classify"))
    assert [path for path, _ in server.asked] == ["/v1/classify", "/classify", "/classify", "/classify"]


@pytest.mark.parametrize("field", ASKED)
async def test_a_server_that_is_busy_is_asked_again_after_the_time_that_it_names(field: str) -> None:
    busy = answers(429, problem("rate limit"), Retry_After="0")
    server = PoolingServer(busy, answers(503, problem("overloaded")))
    async with pooling_engine(server) as engine:
        completion = await engine.generate(request(field))
        assert completion.pooled is not None
        assert completion.pooled.rows == ROWS[field]
        server.before = [busy] * 3
        with pytest.raises(EngineUnavailable, match="429"):
            await engine.generate(request(field))


@pytest.mark.parametrize("field", ASKED)
async def test_a_text_beyond_the_model_s_window_is_refused_at_the_kind_s_field(field: str) -> None:
    long = {
        "embed": ["a" * (WINDOW + 1)],
        "rerank": {"query": "a", "documents": ["a" * WINDOW]},
        "score": {"queries": ["a" * WINDOW], "documents": ["a"]},
        "classify": ["a" * (WINDOW + 1)],
    }
    async with pooling_engine(PoolingServer()) as engine:
        with pytest.raises(RequestRejected, match=f"{field}: This model's maximum context length is"):
            await engine.generate(request(field, long[field]))


@pytest.mark.parametrize("field", ASKED)
async def test_a_missing_path_rejects_the_job_and_an_unknown_model_does_not(field: str) -> None:
    absent = answers(404, {"detail": "Not Found"})
    server = PoolingServer(absent, absent)
    async with pooling_engine(server) as engine:
        kind = request(field).pooling
        assert kind is not None
        with pytest.raises(RequestRejected, match=rf"{field}: the server has no /\w+, so its model gives no"):
            await engine.generate(request(field))
        server.before = [answers(404, problem("The model `m1` does not exist.", "model"))]
        with pytest.raises(EngineUnavailable, match="POSTBACK_ENGINE__OPENAI__MODEL"):
            await engine.generate(request(field))


@pytest.mark.parametrize("field", ASKED)
async def test_an_answer_without_a_row_for_each_text_is_a_failure_of_the_server(field: str) -> None:
    rows = [{"index": index, "label": "x"} for index in range(3)]
    server = PoolingServer(*[answers(200, {"data": rows, "results": rows})])
    async with pooling_engine(server) as engine:
        with pytest.raises(EngineFailed, match="did not answer each text"):
            await engine.generate(request(field))


async def test_a_reranker_of_a_server_that_lists_no_models_starts_and_its_tokens_count() -> None:
    """Jina's server answers no chat, so only a request to /rerank shows that it takes the model's name."""
    server = JinaServer()
    async with pooling_engine(server) as engine:
        completion = await engine.generate(request("rerank", KIND_JOBS["rerank"]["rerank"]))
        with pytest.raises(RequestRejected, match="embed: the server has no /embeddings"):
            await engine.generate(request("embed"))
    assert completion.prompt_tokens == 815
    assert completion.pooled is not None
    assert len(completion.pooled.rows) == 2


async def test_the_check_of_a_worker_asks_a_reranker_to_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    async with pooling_url(JinaServer()) as url:
        monkeypatch.setenv("POSTBACK_ENGINE__OPENAI__BASE_URL", url)
        await check_engine("openai", "m1", told.append)
    assert told[1].startswith("m1: gave ranks in ")
