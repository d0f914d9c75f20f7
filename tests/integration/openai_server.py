"""An OpenAI-compatible server on a real socket: the echo engine behind OpenAI's protocol, or one fixed answer."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.engines.base import Completion, Engine, GenerationRequest
from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.openai_http import create
from workers.engines.openai_http.settings import OpenAISettings

MODEL = "echo-1"


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Serve on a free loopback port; yields the base URL."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def judging(answer: str) -> AsyncIterator[tuple[Engine, list[dict[str, Any]]]]:
    """An engine whose server always gives this answer, and the list of its requests."""
    asked: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.Response:
        asked.append(await request.json())
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "judge", "object": "model"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    async with serving(app) as url:
        yield create(OpenAISettings(base_url=url, model="judge"), Metrics(), SystemClock()), asked


def echo_app() -> web.Application:
    """`/v1/models`, `/v1/chat/completions` and `/v1/completions` over the echo engine."""
    engine = EchoEngine(EchoSettings(), Metrics())

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        completion = await engine.generate(_request(body))
        return _answer(completion, *(_chat_choice(each) for each in (completion, *completion.further)))

    async def completions(request: web.Request) -> web.Response:
        completion = await engine.generate(_request(await request.json()))
        return _answer(completion, *(_text_choice(each) for each in (completion, *completion.further)))

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/completions", completions)
    return app


def _chat_choice(completion: Completion) -> dict[str, Any]:
    content = [each.model_dump() for each in completion.logprobs or ()]
    return {"message": {"role": "assistant", "content": completion.text}, "logprobs": {"content": content}}


def _text_choice(completion: Completion) -> dict[str, Any]:
    logprobs = completion.logprobs or ()
    tops = [{top.token: top.logprob for top in each.top_logprobs or ()} for each in logprobs]
    values = {"tokens": [each.token for each in logprobs], "token_logprobs": [each.logprob for each in logprobs]}
    return {"text": completion.text, "logprobs": {**values, "top_logprobs": tops}}


def _request(body: dict[str, Any]) -> GenerationRequest:
    top = body.get("logprobs")
    asked = body if top is None or top is True else body | {"logprobs": True, "top_logprobs": top}
    return GenerationRequest(uuid.uuid4().hex, asked)


def _answer(completion: Completion, *choices: dict[str, Any]) -> web.Response:
    usage = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
    said = [{"index": at, "finish_reason": completion.finish_reason, **each} for at, each in enumerate(choices)]
    return web.json_response({"object": "chat.completion", "model": MODEL, "choices": said, "usage": usage})
