"""Servers of the Messages API and of the Gemini API on a real socket, over the echo engine.

Each server checks requests as strictly as the service: keys, versions, fields, roles and ranges.
"""

from __future__ import annotations

import uuid
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from schemas.images import media_type_of
from telemetry.metrics import Metrics
from tests.images import image_part
from workers.engines.base import Completion, GenerationRequest
from workers.engines.echo import EchoEngine, EchoSettings

KEY = "sk-very-private"
MODEL = "echo-1"
_MESSAGE_FIELDS = {
    "model",
    "max_tokens",
    "messages",
    "system",
    "temperature",
    "top_p",
    "stop_sequences",
    "output_config",
}
_GEMINI_FIELDS = {"contents", "generationConfig", "systemInstruction"}
_GEMINI_OPTIONS = {
    "maxOutputTokens", "temperature", "topP", "stopSequences", "seed", "responseMimeType", "responseJsonSchema",
    "candidateCount", "responseLogprobs", "logprobs",
}  # fmt: skip
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
_FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS"}


def anthropic_error(status: int, kind: str, message: str) -> web.Response:
    """An error in the form of Anthropic's "Errors" page."""
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011"}
    return web.json_response(body, status=status)


def gemini_error(status: int, name: str, message: str) -> web.Response:
    """An error in the form of google.rpc.Status."""
    body = {"error": {"code": status, "message": message, "status": name}}
    return web.json_response(body, status=status)


def anthropic_app() -> web.Application:
    engine = EchoEngine(EchoSettings(), Metrics())

    def refusal(request: web.Request) -> web.Response | None:
        if request.headers.get("x-api-key") != KEY:
            return anthropic_error(401, "authentication_error", "invalid x-api-key")
        if request.headers.get("anthropic-version") != "2023-06-01":
            return anthropic_error(400, "invalid_request_error", "anthropic-version: header is required")
        return None

    async def model(request: web.Request) -> web.Response:
        if (refused := refusal(request)) is not None:
            return refused
        if request.match_info["model"] != MODEL:
            return anthropic_error(404, "not_found_error", "model: not found")
        return web.json_response({"type": "model", "id": MODEL, "display_name": "Echo", "created_at": "2025-01-01"})

    async def messages(request: web.Request) -> web.Response:
        if (refused := refusal(request)) is not None:
            return refused
        body = await request.json()
        if (wrong := _wrong_message(body)) is not None:
            return anthropic_error(400, "invalid_request_error", wrong)
        if body["model"] != MODEL:
            return anthropic_error(404, "not_found_error", f"model: {body['model']}")
        said = _turns([(each["role"], _blocks(each["content"])) for each in body["messages"]], body.get("system"))
        asked = {"max_tokens": body["max_tokens"], "stop": body.get("stop_sequences", [])}
        done = await engine.complete(_asked(said, asked))
        usage = {"input_tokens": done.prompt_tokens, "output_tokens": done.completion_tokens}
        return web.json_response(
            {
                "id": "msg_01",
                "type": "message",
                "role": "assistant",
                "model": MODEL,
                "content": [{"type": "text", "text": done.text}],
                "stop_reason": _STOP_REASONS[done.finish_reason],
                "stop_sequence": None,
                "usage": {**usage, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
            }
        )

    app = web.Application()
    app.router.add_get("/v1/models/{model}", model)
    app.router.add_post("/v1/messages", messages)
    return app


def _wrong_message(body: Mapping[str, Any]) -> str | None:
    if unknown := {*body} - _MESSAGE_FIELDS:
        return f"{min(unknown)}: Extra inputs are not permitted"
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        return "max_tokens: Field required"
    if not 0 <= body.get("temperature", 1.0) <= 1:
        return "temperature: range: 0..1"
    if any(each["role"] not in ("user", "assistant") for each in body["messages"]):
        return "messages: Unexpected role; the Messages API accepts a top-level `system` parameter"
    if body["messages"][0]["role"] != "user" or not all(each["content"] for each in body["messages"]):
        return "messages: text content blocks must be non-empty"
    return next((wrong for each in body["messages"] for wrong in _wrong_blocks(each["content"])), None)


def _wrong_blocks(content: Any) -> Iterator[str]:
    for block in content if isinstance(content, list) else ():
        if block["type"] == "text" and (not block["text"] or {*block} != {"type", "text"}):
            yield "messages: text content blocks must be non-empty"
        elif block["type"] == "image":
            source = block["source"]
            if {*source} != {"type", "media_type", "data"} or source["type"] != "base64":
                yield "messages: image.source: Input should be base64"
            elif media_type_of(b64decode(source["data"], validate=True)) != source["media_type"]:
                yield "messages: image.source: The media type does not match the image"


def _blocks(content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A message's content in the shape of chat completions, for the echo engine."""
    if isinstance(content, str):
        return content
    return [
        image_part(f"data:{block['source']['media_type']};base64,{block['source']['data']}")
        if block["type"] == "image"
        else block
        for block in content
    ]


def gemini_app() -> web.Application:
    engine = EchoEngine(EchoSettings(), Metrics())

    def refusal(request: web.Request) -> web.Response | None:
        if request.headers.get("x-goog-api-key") != KEY:
            return gemini_error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
        if request.match_info["model"].partition(":")[0] != MODEL:
            return gemini_error(404, "NOT_FOUND", "models/x is not found for API version v1beta")
        return None

    async def model(request: web.Request) -> web.Response:
        limits = {"inputTokenLimit": 1000, "outputTokenLimit": 24}
        return refusal(request) or web.json_response({"name": f"models/{MODEL}", "version": "1", **limits})

    async def generate(request: web.Request) -> web.Response:
        if (refused := refusal(request)) is not None:
            return refused
        body = await request.json()
        if (wrong := _wrong_content(body)) is not None:
            return gemini_error(400, "INVALID_ARGUMENT", wrong)
        options = body["generationConfig"]
        turns = [(_role(each["role"]), [_of_gemini(part) for part in each["parts"]]) for each in body["contents"]]
        system = "".join(part["text"] for part in body.get("systemInstruction", {}).get("parts", ()))
        asked = {"max_tokens": options["maxOutputTokens"], "n": options.get("candidateCount", 1)}
        if options.get("responseLogprobs"):
            asked |= {"logprobs": True, "top_logprobs": options.get("logprobs", 0)}
        stop = {"stop": options.get("stopSequences", [])}
        done = await engine.complete(_asked(_turns(turns, system), asked | stop))
        candidates = [
            {
                "content": {"role": "model", "parts": [{"text": each.text}]},
                "finishReason": _FINISH_REASONS[each.finish_reason],
                "index": index,
                "avgLogprobs": -0.5,
                **_likely(each),
            }
            for index, each in enumerate((done, *done.further))
        ]
        counts = {"promptTokenCount": done.prompt_tokens, "candidatesTokenCount": done.completion_tokens}
        return web.json_response({"candidates": candidates, "usageMetadata": counts, "modelVersion": MODEL})

    app = web.Application()
    app.router.add_get("/v1/models/{model}", model)
    app.router.add_post("/v1/models/{model}", generate)
    return app


def _of_gemini(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part in the shape of chat completions; a part has one member."""
    [(member, value)] = part.items()
    if member == "text":
        return {"type": "text", "text": value}
    assert (member, {*value}) == ("inlineData", {"mimeType", "data"})
    return image_part(f"data:{value['mimeType']};base64,{value['data']}")


def _likely(completion: Completion) -> dict[str, Any]:
    """The log-probabilities of a candidate, if they are asked for."""
    if completion.logprobs is None:
        return {}
    chosen = [{"token": each.token, "logProbability": each.logprob} for each in completion.logprobs]
    top = [
        {"candidates": [{"token": top.token, "logProbability": top.logprob} for top in each.top_logprobs or ()]}
        for each in completion.logprobs
    ]
    return {"logprobsResult": {"chosenCandidates": chosen, "topCandidates": top}}


def _wrong_content(body: Mapping[str, Any]) -> str | None:
    options = body.get("generationConfig", {})
    if unknown := ({*body} - _GEMINI_FIELDS) | ({*options} - _GEMINI_OPTIONS):
        return f'Invalid JSON payload received. Unknown name "{min(unknown)}"'
    if any(each["role"] not in ("user", "model") for each in body["contents"]):
        return "Please use a valid role: user, model."
    if not 0 <= options.get("seed", 0) < 2**31:
        return "Invalid value at 'generation_config.seed' (TYPE_INT32)"
    return None


def _role(role: str) -> str:
    return "assistant" if role == "model" else role


def _turns(turns: Sequence[tuple[str, str | list[dict[str, Any]]]], system: str | None) -> list[dict[str, Any]]:
    told = [{"role": "system", "content": system}] if system else []
    return [*told, *({"role": role, "content": text} for role, text in turns)]


def _asked(messages: list[dict[str, Any]], options: dict[str, Any]) -> GenerationRequest:
    """The request for the echo engine, as it came to the service."""
    return GenerationRequest(uuid.uuid4().hex, {"messages": messages, **options})


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
