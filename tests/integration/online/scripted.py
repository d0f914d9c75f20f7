"""Engines of online services whose server answers with given responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.online.responses_service import response_answer, responses_error
from tests.integration.online.services import (
    KEY,
    MODEL,
    anthropic_error,
    gemini_answer,
    gemini_error,
    message_answer,
)
from tests.integration.openai_http.servers import Respond, Server, answers
from tests.integration.openai_server import serving
from workers.engines.address import AddressEngine
from workers.engines.registry import create, engine_settings


def engine_of(kind: str, url: str, model: str = MODEL, **options: Any) -> AddressEngine:
    chosen = {kind: {"base_url": url, "api_key": KEY, "attempts": 2, "start_timeout_seconds": 5, **options}}
    return create(kind, engine_settings().model_validate(chosen), Metrics(), SystemClock(), model=model)


@dataclass
class OnlineKind:
    """One service: its name, its answers and its errors."""

    name: str
    said: Any
    problem: Any


ANTHROPIC = OnlineKind(
    "anthropic", message_answer, lambda status, message: anthropic_error(status, "api_error", message)
)
GEMINI = OnlineKind("gemini", gemini_answer, lambda status, message: gemini_error(status, "UNKNOWN", message))
RESPONSES = OnlineKind("responses", response_answer, responses_error)
EACH = pytest.mark.parametrize("kind", [ANTHROPIC, GEMINI, RESPONSES], ids=lambda kind: kind.name)


@asynccontextmanager
async def scripted(
    kind: OnlineKind, *responses: Respond, models: Respond | None = None, **options: Any
) -> AsyncIterator[tuple[AddressEngine, Server]]:
    """A started engine whose server answers with these responses in order.

    `models` answers requests for the list of models or for the model's description, instead of a list of this model.
    """
    server = Server(*responses)

    async def described(asked: web.Request) -> web.StreamResponse:
        model = {"id": MODEL, "name": MODEL, "object": "model"}
        return web.json_response({"data": [model]} if asked.path == "/v1/models" else model)

    app = web.Application()
    app.router.add_get("/v1/{path:.*}", models or described)
    app.router.add_post("/v1/{path:.*}", server.respond)
    async with serving(app) as url:
        engine = engine_of(kind.name, url, **options)
        try:
            await engine.start()
            yield engine, server
        finally:
            await engine.close()


def problem(kind: OnlineKind, status: int, message: str = "", **headers: str) -> Respond:
    async def respond(_: web.Request) -> web.StreamResponse:
        response: web.Response = kind.problem(status, message)
        response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        return response

    return respond


def says(kind: OnlineKind, text: str, **fields: Any) -> Respond:
    return answers(200, kind.said(text, **fields))
