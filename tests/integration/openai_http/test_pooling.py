"""Jobs without a question at a server: each kind's path, body and answer, and the server's refusals and limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from schemas.job import Job
from scripts.publish.job_examples import KIND_JOBS
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.openai_http.servers import Respond, answers, lists, problem
from tests.integration.openai_server import serving
from workers.engines.base import EngineError, EngineFailed, EngineUnavailable, GenerationRequest, RequestRejected
from workers.engines.openai_http import create
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.pooling import PoolingInput
from workers.roles.engine_check import check_engine

DOCUMENTS = ["a house", "a long river", "a sea"]


NO_PATH = answers(404, {"detail": "Not Found"})


@dataclass(frozen=True)
class Kind:
    """A kind of job: its texts, the path and the body of vLLM's request, vLLM's answer, and the rows of the result."""

    asked: Any
    path: str
    body: dict[str, Any]
    answer: dict[str, Any]
    rows: tuple[tuple[float, ...], ...]


KINDS = {
    "embed": Kind(
        DOCUMENTS,
        "/v1/embeddings",
        {"input": DOCUMENTS, "encoding_format": "float"},
        {"data": [{"index": index, "object": "embedding", "embedding": [index, -0.5]} for index in (1, 0, 2)]},
        ((0.0, -0.5), (1.0, -0.5), (2.0, -0.5)),
    ),
    "rerank": Kind(
        {"query": "water", "documents": DOCUMENTS, "top_n": 1},
        "/v1/rerank",
        {"query": "water", "documents": DOCUMENTS},
        {
            "results": [
                {"index": index, "document": {"text": DOCUMENTS[index], "multi_modal": None}, "relevance_score": score}
                for index, score in ((1, 0.12), (0, 0.07), (2, 0.05))
            ]
        },
        ((0.07,), (0.12,), (0.05,)),
    ),
    "score": Kind(
        {"queries": ["water"], "documents": DOCUMENTS},
        "/v1/score",
        {"text_1": ["water"], "text_2": DOCUMENTS},
        {"data": [{"index": index, "object": "score", "score": score} for index, score in ((2, 5), (0, 7), (1, 12))]},
        ((7.0,), (12.0,), (5.0,)),
    ),
    "classify": Kind(
        ["well", "no!!", "!!!!"],
        "/classify",
        {"input": ["well", "no!!", "!!!!"]},
        {
            "data": [
                {"index": index, "label": label, "probs": [1 - angry, angry], "num_classes": 2}
                for index, (label, angry) in enumerate((("calm", 0.0), ("calm", 0.5), ("angry", 1.0)))
            ]
        },
        ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)),
    ),
}
USAGE = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None}


class PoolingServer:
    """Answers jobs of each kind as vLLM does. The responses in `before` come first, such as those of a rate limit."""

    def __init__(self, *before: Respond) -> None:
        self.before = list(before)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def respond(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, await request.json() if request.can_read_body else {}))
        if self.before:
            return await self.before.pop(0)(request)
        for kind in KINDS.values():
            if kind.path == request.path:
                return web.json_response({"model": "m1", "usage": USAGE, **kind.answer})
        return await NO_PATH(request)


class JinaServer(PoolingServer):
    """A server that has only the path /v1/rerank, reports only the sum of the tokens, and lists no models."""

    async def respond(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/v1/rerank":
            return await NO_PATH(request)
        rows = [{"index": index, "relevance_score": 0.5} for index in range(len((await request.json())["documents"]))]
        return web.json_response({"model": "m1", "object": "list", "usage": {"total_tokens": 815}, "results": rows})


@asynccontextmanager
async def pooling_url(server: PoolingServer) -> AsyncIterator[str]:
    """The base URL of the server."""
    app = web.Application()
    if not isinstance(server, JinaServer):
        app.router.add_get("/v1/models", lists({"id": "m1", "max_model_len": 16}))
    app.router.add_post("/{path:.*}", server.respond)
    async with serving(app) as url:
        yield url


@asynccontextmanager
async def pooling_engine(server: PoolingServer) -> AsyncIterator[HttpEngine]:
    """A started engine of the server."""
    async with pooling_url(server) as url:
        engine = create(OpenAISettings(base_url=url, model="m1", attempts=3), Metrics(), SystemClock())
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


def request(field: str, asked: Any = None) -> GenerationRequest:
    pooling = PoolingInput.of(Job.model_validate({field: asked or KINDS[field].asked}))
    return GenerationRequest(f"r-{field}", {"max_tokens": 512}, pooling=pooling)


@pytest.mark.parametrize("field", KINDS)
async def test_a_server_of_vllm_answers_each_kind_with_the_rows_in_the_texts_order(field: str) -> None:
    server, kind = PoolingServer(), KINDS[field]
    async with pooling_engine(server) as engine:
        completion = await engine.complete(request(field))
    assert server.asked[-1] == (kind.path, {"model": "m1", **kind.body})
    assert completion.pooled is not None
    assert completion.pooled.rows == kind.rows
    assert completion.pooled.labels == (("calm", "calm", "angry") if field == "classify" else ())
    assert (completion.finish_reason, completion.text) == ("stop", "")
    assert (completion.prompt_tokens, completion.completion_tokens) == (7, 0)


async def test_a_path_beside_v1_is_looked_for_once() -> None:
    server = PoolingServer()
    async with pooling_engine(server) as engine:
        for _ in range(3):
            await engine.complete(request("classify"))
    assert [path for path, _ in server.asked] == ["/v1/classify", "/classify", "/classify", "/classify"]


@pytest.mark.parametrize("field", KINDS)
async def test_a_server_that_is_busy_is_asked_again_after_the_time_that_it_names(field: str) -> None:
    busy = answers(429, problem("rate limit"), Retry_After="0")
    server = PoolingServer(busy, answers(503, problem("overloaded")))
    async with pooling_engine(server) as engine:
        assert (await engine.complete(request(field))).pooled is not None
        server.before = [busy] * 3
        with pytest.raises(EngineUnavailable, match="429"):
            await engine.complete(request(field))


TOO_LONG = answers(400, problem("This model's maximum context length is 100 tokens. However, your request has more."))
NO_MODEL = answers(404, problem("The model `m1` does not exist.", "model"))
SHORT = [{"index": index, "label": "x"} for index in range(3)]


@pytest.mark.parametrize("field", KINDS)
@pytest.mark.parametrize(
    ("before", "error", "why"),
    [
        ([TOO_LONG], RequestRejected, "{field}: This model's maximum context length is"),
        ([NO_PATH, NO_PATH], RequestRejected, r"{field}: the server has no /\w+, so its model gives no"),
        ([NO_MODEL], EngineUnavailable, "POSTBACK_ENGINE__OPENAI__MODEL"),
        ([answers(200, {"data": SHORT, "results": SHORT})], EngineFailed, "did not answer each text"),
    ],
    ids=["too long", "no path", "no model", "no rows"],
)
async def test_a_refusal_is_the_job_s_fault_only_where_another_job_could_be_answered(
    field: str, before: list[Respond], error: type[EngineError], why: str
) -> None:
    async with pooling_engine(PoolingServer(*before)) as engine:
        with pytest.raises(error, match=why.format(field=field)):
            await engine.complete(request(field))


async def test_a_reranker_of_a_server_that_lists_no_models_starts_and_its_tokens_count() -> None:
    """Jina's server answers no chat, so only a request to /rerank shows that it takes the model's name."""
    server = JinaServer()
    async with pooling_engine(server) as engine:
        completion = await engine.complete(request("rerank", KIND_JOBS["rerank"]["rerank"]))
        with pytest.raises(RequestRejected, match="embed: the server has no /embeddings"):
            await engine.complete(request("embed"))
    assert completion.prompt_tokens == 815
    assert completion.pooled is not None
    assert len(completion.pooled.rows) == 2


async def test_the_check_of_a_worker_asks_a_reranker_to_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    async with pooling_url(JinaServer()) as url:
        monkeypatch.setenv("POSTBACK_ENGINE__OPENAI__BASE_URL", url)
        await check_engine("openai", "m1", told.append)
    assert told[1].startswith("m1: gave ranks in ")
