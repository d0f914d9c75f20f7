"""Engines of online services whose server answers with given responses, in the forms of their APIs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.openai_http.servers import Respond, Server, answers
from tests.integration.openai_server import serving
from workers.engines.address import AddressEngine
from workers.engines.base import Completion
from workers.engines.registry import create, engine_settings

KEY = "sk-very-private"
MODEL = "echo-1"


def anthropic_error(status: int, kind: str, message: str) -> web.Response:
    """An error in the form of Anthropic's "Errors" page."""
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011"}
    return web.json_response(body, status=status)


def gemini_error(status: int, name: str, message: str) -> web.Response:
    """An error in the form of google.rpc.Status."""
    body = {"error": {"code": status, "message": message, "status": name}}
    return web.json_response(body, status=status)


def responses_error(status: int, message: str, param: str | None = None, code: str | None = None) -> web.Response:
    """An error in the form of OpenAI's "Error codes" page."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return web.json_response(body, status=status)


def message_answer(text: str, **fields: Any) -> dict[str, Any]:
    """A message of the Messages API."""
    content = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": text}]
    usage = {"input_tokens": 3, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 20, "output_tokens": 4}
    return {"type": "message", "content": content, "stop_reason": "end_turn", "usage": usage, **fields}


def gemini_answer(text: str, **candidate: Any) -> dict[str, Any]:
    """A GenerateContentResponse."""
    parts = [{"text": "Hm.", "thought": True}, {"text": text}]
    usage = {"promptTokenCount": 33, "candidatesTokenCount": 4, "thoughtsTokenCount": 5, "cachedContentTokenCount": 20}
    first = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP", **candidate}
    return {"candidates": [first], "usageMetadata": usage}


def completion_of(completion: Completion) -> tuple[str, str, int, int]:
    return completion.text, completion.finish_reason, completion.prompt_tokens, completion.completion_tokens


def said(text: str, logprobs: Sequence[Mapping[str, Any]] = (), **fields: Any) -> dict[str, Any]:
    """A message of the output."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}
    message = {"type": "message", "id": "msg_01", "role": "assistant", "status": "completed", "content": [part]}
    return {**message, **fields}


def thought(*summaries: str, **fields: Any) -> dict[str, Any]:
    """A reasoning item of the output."""
    parts = [{"type": "summary_text", "text": text} for text in summaries]
    return {"type": "reasoning", "id": "rs_01", "summary": parts, **fields}


def called(name: str, arguments: str, **fields: Any) -> dict[str, Any]:
    """A tool call of the output."""
    call = {"id": "fc_01", "call_id": "c1", "name": name, "arguments": arguments, "status": "completed"}
    return {"type": "function_call", **call, **fields}


def usage(prompt: int, generated: int, cached: int = 0, thought: int = 0) -> dict[str, Any]:
    """The tokens of a response."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + generated,
    }


def response(*output: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A Response object with these items."""
    return {
        "id": "resp_01",
        "object": "response",
        "created_at": 1_741_476_542,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": MODEL,
        "output": [*output],
        "parallel_tool_calls": True,
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage(33, 9, 20, 5),
        **fields,
    }


def response_answer(text: str, **fields: Any) -> dict[str, Any]:
    """A response with a reasoning and this text."""
    return response(thought("Hm."), said(text), **fields)


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
