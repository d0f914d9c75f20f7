"""A server of a pooling model with the paths, checks and answers of `vllm serve` 0.32, and a server like Jina's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.openai_http.servers import Respond, lists, problem
from tests.integration.openai_server import serving
from workers.engines.openai_http import OpenAIEngine
from workers.engines.openai_http.settings import OpenAISettings

WINDOW = 100
"""Characters that the model reads at most; vLLM counts tokens."""
CLASSES = ("calm", "angry")
PATHS = {
    "embed": ("/v1/embeddings",),
    "rerank": ("/rerank", "/v1/rerank", "/v2/rerank"),
    "score": ("/score", "/v1/score"),
    "classify": ("/classify",),
}
"""Maps each kind of job to the paths that vLLM has for it."""


class PoolingServer:
    """Answers jobs of each kind. The responses in `before` come first, for example those of a rate limit."""

    def __init__(self, *before: Respond) -> None:
        self.before = list(before)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def respond(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else {}
        self.asked.append((request.path, body))
        if self.before:
            return await self.before.pop(0)(request)
        kind = next((kind for kind, paths in PATHS.items() if request.path in paths), None)
        if kind is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        if body.get("model") != "m1":
            return web.json_response(problem(f"The model `{body.get('model')}` does not exist.", "model"), status=404)
        texts = self._texts(kind, body)
        if any(len(text) > WINDOW for text in texts):
            said = f"This model's maximum context length is {WINDOW} tokens. However, your request has more."
            return web.json_response(problem(said), status=400)
        tokens = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        return web.json_response({"model": "m1", "usage": usage, **getattr(self, f"_{kind}")(body)})

    def _texts(self, kind: str, body: dict[str, Any]) -> list[str]:
        if kind in ("embed", "classify"):
            return list(body["input"])
        if kind == "rerank":
            return [f"{body['query']} {document}" for document in body["documents"]]
        queries = body["text_1"] * len(body["text_2"]) if len(body["text_1"]) == 1 else body["text_1"]
        return [f"{query} {text}" for query, text in zip(queries, body["text_2"], strict=True)]

    def _embed(self, body: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {"index": index, "object": "embedding", "embedding": [float(len(text)), -0.5]}
            for index, text in enumerate(body["input"])
        ]
        return {"id": "embd-1", "object": "list", "created": 1, "data": rows}

    def _rerank(self, body: dict[str, Any]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [
            {"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": len(text) / 100}
            for index, text in enumerate(body["documents"])
        ]
        rows.sort(key=lambda row: row["relevance_score"], reverse=True)
        return {"id": "rerank-1", "results": rows[: body.get("top_n") or None]}

    def _score(self, body: dict[str, Any]) -> dict[str, Any]:
        rows = [{"index": index, "object": "score", "score": len(text)} for index, text in enumerate(body["text_2"])]
        return {"id": "score-1", "object": "list", "created": 1, "data": rows}

    def _classify(self, body: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for index, text in enumerate(body["input"]):
            angry = text.count("!") / len(text)
            label = CLASSES[angry > 0.5]
            rows.append({"index": index, "label": label, "probs": [1 - angry, angry], "num_classes": 2})
        return {"id": "classify-1", "object": "list", "created": 1, "data": rows}


class JinaServer(PoolingServer):
    """A server that has only the path /v1/rerank, reports only the sum of the tokens, and lists no models."""

    async def respond(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else {}
        self.asked.append((request.path, body))
        if request.path != "/v1/rerank":
            return web.json_response({"detail": "Not Found"}, status=404)
        rows = self._rerank(body)["results"]
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
async def pooling_engine(server: PoolingServer, **settings: Any) -> AsyncIterator[OpenAIEngine]:
    """A started engine of the server."""
    async with pooling_url(server) as url:
        chosen = {"base_url": url, "model": "m1", "attempts": 3, **settings}
        engine = OpenAIEngine(OpenAISettings.model_validate(chosen), SystemClock(), Metrics())
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()
