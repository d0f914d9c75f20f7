"""Servers of the chat completions API with scripted answers, and the HTTP engine connected to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.openai_server import serving
from workers.engines.openai_http import create
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.settings import OpenAISettings

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = "sk-very-private"


class Server:
    """Answers requests with the responses in order, and repeats the last one."""

    def __init__(self, *responses: Respond) -> None:
        self.responses = list(responses)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []

    async def respond(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json() if request.can_read_body else {})
        self.headers.append(request.headers.copy())
        respond = self.responses[min(len(self.bodies), len(self.responses)) - 1]
        return await respond(request)


def answers(status: int, body: Any, **headers: str) -> Respond:
    async def respond(request: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return respond


def says(text: str, **choice: Any) -> Respond:
    message = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    return answers(200, {"choices": [message], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})


async def never(request: web.Request) -> web.StreamResponse:
    """Give no answer within a test's time."""
    await asyncio.sleep(60)
    return web.Response()


def lists(*models: dict[str, Any]) -> Respond:
    return answers(200, {"object": "list", "data": [{"object": "model", **model} for model in models]})


def problem(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


@asynccontextmanager
async def openai_server(
    server: Server, models: Server | None = None, metrics: Respond | None = None
) -> AsyncIterator[str]:
    """The base URL of a server that lists the model m1, unless `models` is given."""
    app = web.Application()
    app.router.add_get("/v1/models", (models or Server(lists({"id": "m1"}))).respond)
    app.router.add_post("/v1/chat/completions", server.respond)
    app.router.add_post("/v1/completions", server.respond)
    if metrics is not None:
        app.router.add_get("/metrics", metrics)
    async with serving(app) as url:
        yield url


@asynccontextmanager
async def engine_for(
    server: Server,
    models: Server | None = None,
    metrics: Respond | None = None,
    shown: Metrics | None = None,
    **settings: Any,
) -> AsyncIterator[HttpEngine]:
    """An engine of an `openai_server`; the engine is not started."""
    async with openai_server(server, models, metrics) as url:
        chosen = {"base_url": url, "model": "m1", "api_key": KEY, "attempts": 2, **settings}
        yield create(OpenAISettings.model_validate(chosen), shown or Metrics(), SystemClock())


@asynccontextmanager
async def engine_at(
    server: Server, models: Server | None = None, metrics: Respond | None = None, **settings: Any
) -> AsyncIterator[HttpEngine]:
    """Like `engine_for`, and the engine is started."""
    async with engine_for(server, models, metrics, **settings) as engine:
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()
