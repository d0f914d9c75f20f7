"""A server of OpenAI's Responses API on a real socket, over the echo engine.

The server checks requests as strictly as the service: the key, members, types of items and parts, and ranges.
"""

from __future__ import annotations

import uuid
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from schemas.images import media_type_of, parted_data_url
from telemetry.metrics import Metrics
from tests.images import image_part
from tests.integration.online.services import KEY, MODEL
from workers.engines.base import Completion, GenerationRequest
from workers.engines.echo import EchoEngine, EchoSettings

_MEMBERS = {
    "include",
    "input",
    "max_output_tokens",
    "model",
    "parallel_tool_calls",
    "reasoning",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
}
_ROLES = {"user", "assistant", "system", "developer"}
_ITEMS = {
    "message": {"type", "role", "content"},
    "function_call": {"type", "call_id", "name", "arguments"},
    "function_call_output": {"type", "call_id", "output"},
}
_PARTS = {"input_text": {"type", "text"}, "input_image": {"type", "image_url", "detail"}}
_REASONS = {"stop": None, "length": {"reason": "max_output_tokens"}}


def responses_error(status: int, message: str, param: str | None = None, code: str | None = None) -> web.Response:
    """An error in the form of OpenAI's "Error codes" page."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    return web.json_response(body, status=status)


def responses_app(*, least: int = 1, takes_temperature: bool = True) -> web.Application:
    """`least` is the smallest `max_output_tokens`, 16 at OpenAI; a reasoning model takes no temperature."""
    engine = EchoEngine(EchoSettings(), Metrics())

    def refusal(request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return responses_error(401, "Incorrect API key provided: sk-other.", code="invalid_api_key")
        return None

    async def models(request: web.Request) -> web.Response:
        if (refused := refusal(request)) is not None:
            return refused
        model = {"id": MODEL, "object": "model", "created": 1686935002, "owned_by": "openai"}
        return web.json_response({"object": "list", "data": [model]})

    async def create(request: web.Request) -> web.Response:
        if (refused := refusal(request)) is not None:
            return refused
        body = await request.json()
        if not takes_temperature and "temperature" in body:
            told = "Unsupported parameter: 'temperature' is not supported with this model."
            return responses_error(400, told, "temperature")
        if (wrong := next(_wrong(body, least), None)) is not None:
            return responses_error(400, wrong[1], wrong[0], "invalid_value")
        done = await engine.complete(_asked(body))
        return web.json_response(
            response(
                said(done.text, _likely(done)),
                status="completed" if done.finish_reason == "stop" else "incomplete",
                incomplete_details=_REASONS[done.finish_reason],
                usage=usage(done.prompt_tokens, done.completion_tokens),
            )
        )

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/responses", create)
    return app


def _wrong(body: Mapping[str, Any], least: int) -> Iterator[tuple[str, str]]:
    """Yield the parameter and the text of each reason to refuse the request."""
    for name in {*body} - _MEMBERS:
        yield name, f"Unknown parameter: '{name}'."
    if body["model"] != MODEL:
        yield "model", f"The requested model '{body['model']}' does not exist."
    if (most := body["max_output_tokens"]) < least:
        told = f"integer below minimum value. Expected a value >= {least}, but got {most} instead."
        yield "max_output_tokens", f"Invalid 'max_output_tokens': {told}"
    if not 0 <= body.get("temperature", 1.0) <= 2:
        yield "temperature", "Invalid 'temperature': decimal above maximum value."
    if body.get("include", ["message.output_text.logprobs"]) != ["message.output_text.logprobs"]:
        yield "include[0]", "Invalid value: 'include[0]'."
    if not body["input"]:
        yield "input", "One of 'input' or 'previous_response_id' must be provided."
    calls: set[str] = set()
    for at, item in enumerate(body["input"]):
        yield from _wrong_item(f"input[{at}]", item, calls)
    for at, tool in enumerate(body.get("tools", ())):
        if {*tool} - {"description"} != {"type", "name", "parameters", "strict"}:
            yield f"tools[{at}]", f"Missing required parameter: 'tools[{at}].name'."
        elif "properties" not in tool["parameters"]:
            yield f"tools[{at}].parameters", "Invalid schema for function: object schema missing properties."


def _wrong_item(place: str, item: Mapping[str, Any], calls: set[str]) -> Iterator[tuple[str, str]]:
    if {*item} != _ITEMS.get(item["type"]):
        yield place, f"Invalid value: '{item['type']}'."
    elif item["type"] == "function_call":
        calls.add(item["call_id"])
    elif item["type"] == "function_call_output" and item["call_id"] not in calls:
        yield "input", f"No tool call found for function call output with call_id {item['call_id']}."
    elif item["type"] == "message" and item["role"] not in _ROLES:
        yield f"{place}.role", f"Invalid value: '{item['role']}'."
    elif isinstance(item.get("content"), list):
        for at, part in enumerate(item["content"]):
            if {*part} != _PARTS.get(part["type"]):
                yield f"{place}.content[{at}]", f"Invalid value: '{part['type']}'."
            elif part["type"] == "input_image" and not _is_an_image(part["image_url"]):
                yield f"{place}.content[{at}].image_url", "Expected a base64-encoded data URL with an image MIME type."


def _is_an_image(url: str) -> bool:
    media_type, data = parted_data_url(url)
    return media_type_of(b64decode(data, validate=True)) == media_type


def _asked(body: Mapping[str, Any]) -> GenerationRequest:
    options = {"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)} if "include" in body else {}
    messages = [_message(item) for item in body["input"] if item["type"] == "message"]
    asked = {"messages": messages, "max_tokens": body["max_output_tokens"], **options}
    return GenerationRequest(uuid.uuid4().hex, asked)


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the shape of chat completions, for the echo engine."""
    content = item["content"]
    if isinstance(content, list):
        content = [
            image_part(part["image_url"]) if part["type"] == "input_image" else {"type": "text", "text": part["text"]}
            for part in content
        ]
    return {"role": item["role"], "content": content}


def _likely(completion: Completion) -> Sequence[Mapping[str, Any]]:
    """The log-probabilities of an answer, if they are asked for."""
    return [
        {
            **_token(each.token, each.logprob),
            "top_logprobs": [_token(top.token, top.logprob) for top in each.top_logprobs or ()],
        }
        for each in completion.logprobs or ()
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "bytes": list(token.encode()), "logprob": logprob}


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
