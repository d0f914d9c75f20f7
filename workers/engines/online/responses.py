"""OpenAI's Responses API (`POST /v1/responses`), without streaming and without storage at the service.

Source: OpenAI API reference, "Create a model response" and "The response object".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from schemas.job import ImagePart, Message, Reasoning, ResponseFormat, TextPart
from schemas.tools import NamedTool
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import Completion, GenerationRequest, RequestRejected, inline
from workers.engines.online.responses_answer import completion_of
from workers.engines.online.service import OnlineApi, OnlineSettings, online_engine
from workers.engines.online.turns import options_of, require_chat
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.models import ServerModels

_FIELDS: Final[Mapping[str, str]] = {
    "include": "logprobs",
    "max_output_tokens": "max_tokens",
    "parallel_tool_calls": "parallel_tool_calls",
    "reasoning": "reasoning.effort",
    "temperature": "temperature",
    "text": "response_format",
    "tool_choice": "tool_choice",
    "tools": "tools",
    "top_logprobs": "top_logprobs",
    "top_p": "top_p",
}
_LOGPROBS: Final = "message.output_text.logprobs"


class ResponsesSettings(OnlineSettings):
    """Settings of OpenAI's Responses API."""

    base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://[^\s]+$")
    """The service's URL, with the version of its API."""
    reasoning_summary: Literal["auto", "concise", "detailed"] | None = None
    """The kind of reasoning summary to ask for; if absent, results have no reasoning.

    OpenAI gives summaries to verified organizations only, and only its reasoning models take this parameter.
    """


class ResponsesApi(OnlineApi):
    """OpenAI's Responses API."""

    generation_path = "responses"
    model_path = "models"
    """The path of the list of all models. Servers other than OpenAI's have no path for a single model.

    The list of a vLLM server also states the window.
    """
    fields: ClassVar[Mapping[str, str]] = _FIELDS

    def __init__(self, model: str, summary: str | None = None) -> None:
        super().__init__()
        self._model = model
        self._summary = summary

    def headers(self, key: str) -> dict[str, str]:
        """Return the key as a bearer token."""
        return {"Authorization": f"Bearer {key}"}

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """Return the JSON of a request for a response.

        The API takes no stop texts, so the request leaves them out and `completion` cuts the text. Raises
        RequestRejected for a raw prompt, or a bound on the tokens of the reasoning.
        """
        require_chat(request)
        body: dict[str, Any] = {
            "model": self._model,
            "input": [item for message in _messages(request) for item in _items(message)],
            "max_output_tokens": request.max_tokens,
            "store": False,
        }
        body |= self.temperature(request)
        body |= {name: value for name, value in options_of("responses", request).items() if name != "stop"}
        if reasoning := self._reasoning(request.reasoning):
            body["reasoning"] = reasoning
        if request.response_format is not None and request.response_format.type != "text":
            body["text"] = {"format": _format(request.response_format)}
        if request.tools:
            body |= _tools(request)
        if request.top_logprobs is not None:
            body |= {"include": [_LOGPROBS], "top_logprobs": request.top_logprobs}
        return body

    def completion(self, body: bytes, request: GenerationRequest) -> Completion:
        """Return the response's text, reasoning and calls.

        Raises EngineError if the response failed, and ValueError for a body that is no response object.
        """
        return completion_of(body, request)

    def window(self, body: bytes) -> int | None:
        """Return the model's window from the list of models; None for OpenAI's list, which has no windows.

        Raises ValidationError and LookupError.
        """
        return ServerModels.model_validate_json(body).listed_window(self._model)

    def _reasoning(self, asked: Reasoning | None) -> dict[str, str]:
        """Return the options of the reasoning; no options if the model decides about its reasoning.

        Raises RequestRejected.
        """
        if asked is not None and not asked.is_wanted:
            return {"effort": "none"}
        if asked is not None and asked.max_tokens is not None:
            raise RequestRejected("reasoning.max_tokens", "this service has no such bound; set `reasoning.effort`")
        options = {"effort": asked.effort if asked is not None else None, "summary": self._summary}
        return {name: value for name, value in options.items() if value is not None}


def _messages(request: GenerationRequest) -> Sequence[Message]:
    return request.messages or (Message(role="user", content=request.prompt or ""),)


def _items(message: Message) -> list[dict[str, Any]]:
    """Return a message as items of the input: the message itself, its calls, or a call's output."""
    if message.role == "tool":
        return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": message.text}]
    items: list[dict[str, Any]] = []
    if message.images:
        parts = [_part(part) for part in message.parts if isinstance(part, ImagePart) or part.text]
        items.append({"type": "message", "role": message.role, "content": parts})
    elif message.text or not message.tool_calls:
        items.append({"type": "message", "role": message.role, "content": message.text})
    for call in message.tool_calls or ():
        called = {"name": call.function.name, "arguments": call.function.arguments}
        items.append({"type": "function_call", "call_id": call.id, **called})
    return items


def _part(part: ImagePart | TextPart) -> dict[str, Any]:
    """Return a part of a user's message. Raises RequestRejected for a URL that the service would fetch."""
    if isinstance(part, TextPart):
        return {"type": "input_text", "text": part.text}
    inline(part.image_url)
    return {"type": "input_image", "image_url": part.image_url.url, "detail": part.image_url.detail or "auto"}


def _format(form: ResponseFormat) -> dict[str, Any]:
    """Return the form of the answer; the fields of `json_schema` are one level higher than in chat completions."""
    if form.json_schema is None:
        return {"type": form.type}
    schema = form.json_schema
    return {"type": form.type, "name": schema.name, "schema": schema.schema_, "strict": schema.strict}


def _tools(request: GenerationRequest) -> dict[str, Any]:
    """Return the parameters for tools.

    `strict` is always sent, because this API is strict by default, unlike chat completions. The service refuses an
    object without `properties`.
    """
    tools = []
    for tool in request.tools:
        function = tool.function
        described = {"description": function.description} if function.description is not None else {}
        schema = {"type": "object", "properties": {}, **function.parameters}
        strict = bool(function.strict)
        tools.append({"type": "function", "name": function.name, **described, "parameters": schema, "strict": strict})
    asked = request.tool_choice
    choice = {"type": "function", "name": asked.function.name} if isinstance(asked, NamedTool) else asked
    fields = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": request.parallel_tool_calls}
    return {name: value for name, value in fields.items() if value is not None}


Settings = ResponsesSettings


def create(settings: ResponsesSettings, metrics: Metrics, clock: Clock) -> HttpEngine:
    """Make the engine of a worker; see `EngineModule`."""
    if settings.model is None:
        raise ValueError("the responses engine needs the name of a model")
    api = ResponsesApi(settings.model, settings.reasoning_summary)
    return online_engine("responses", settings.model, settings, api, metrics, clock)
