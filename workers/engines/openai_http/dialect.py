"""OpenAI's chat completions and completions: requests with the parameters that the server takes, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from schemas.job import ImagePart, Message, Reasoning, TextPart
from schemas.tools import NamedTool
from telemetry.clock import Clock
from workers.engines.base import (
    NAMES,
    Completion,
    GenerationRequest,
    RequestRejected,
    first_requests,
    inline,
    named,
    require_texts,
)
from workers.engines.openai_http.answers import ServerAnswer, completion_of
from workers.engines.openai_http.pooling import SERVER_ENDPOINTS
from workers.engines.openai_http.pooling import completion_of as pooled
from workers.engines.openai_http.server import ModelServer, question_of
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.prompts import plain_text

CHAT = "chat/completions"
COMPLETIONS = "completions"
_OF_TEXTS = frozenset(path for endpoint in SERVER_ENDPOINTS.values() for path in endpoint.paths)
"""The paths for jobs without a question."""


_SAME_NAMES = (
    *("max_tokens", "temperature", "response_format", "n", "logprobs", "top_logprobs"),
    *("tools", "tool_choice", "parallel_tool_calls", "dimensions", *NAMES),
)


class OpenAIServer(ModelServer):
    """A server of OpenAI's chat completions and completions."""

    settings: OpenAISettings
    kind = "openai"
    reports_load = True
    firsts = first_requests("first-request", "Hello.", 16, 0.0)
    """A reranker does not answer questions, so texts to embed, score, rank and classify are tried too."""
    fields: ClassVar[Mapping[str, str]] = {name: name for name in _SAME_NAMES} | {
        "max_completion_tokens": "max_tokens",
        "reasoning_effort": "reasoning.effort",
        "thinking_token_budget": "reasoning.max_tokens",
    }

    def __init__(self, settings: OpenAISettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        family = settings.model_family()
        self._marks = family.reasoning if family is not None else None

    def completion(self, body: bytes, request: GenerationRequest) -> Completion:
        """Return the answer to the request. Raises ValueError and EngineError."""
        if request.pooling is not None:
            return pooled(request.pooling, body)
        return completion_of(ServerAnswer.model_validate_json(body), self._marks, request)

    def missing(self, request: GenerationRequest, path: str) -> RequestRejected | None:
        """Return the error of a job that chose the missing path: a raw prompt, or texts without a question.

        A job with a question is at fault, too, if the server, such as a reranker, has answered only jobs without one.
        """
        if request.pooling is not None:
            kind = request.pooling.kind
            own = SERVER_ENDPOINTS[kind.field].paths[0]
            return RequestRejected(kind.field, f"the server has no /{own}, so its model gives no {kind.answer}")
        answers_no_question = bool(self.found) and self.found <= _OF_TEXTS
        if request.is_raw and (answers_no_question or self.settings.api == "chat"):
            return RequestRejected("raw", f"the server has no /{path}, so it cannot complete a raw prompt")
        if answers_no_question:
            return RequestRejected(question_of(request), f"the server has no /{path}, so its model answers no question")
        return None

    def paths(self, request: GenerationRequest) -> Sequence[str]:
        """Return the paths to try one after the other. A raw prompt never goes to the path for chats."""
        if request.pooling is None:
            return (CHAT if self.settings.api == "chat" and not request.is_raw else COMPLETIONS,)
        paths = SERVER_ENDPOINTS[request.pooling.kind.field].paths
        return sorted(paths, key=lambda path: path not in self.found)

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """Return the request's JSON for its first path."""
        if request.pooling is not None:
            return {"model": self.model, **SERVER_ENDPOINTS[request.pooling.kind.field].body(request.pooling)}
        chat = self.paths(request)[0] == CHAT
        longest = "max_completion_tokens" if "max_tokens" in self.refused else "max_tokens"
        body: dict[str, Any] = {"model": self.model, longest: request.max_tokens}
        if chat:
            body["messages"] = _messages(request)
        else:
            require_texts(request, "the server completes texts here and reads no images; name a model for chats")
            body["prompt"] = request.prompt if request.prompt is not None else plain_text(request.messages or ())
        body |= self.temperature(request)
        if request.reasoning is not None:
            body |= _reasoning(request.reasoning, chat=chat)
        body |= named("openai", request)
        if request.response_format is not None and request.response_format.type != "text":
            body["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
        body |= _tools(request, chat=chat)
        if request.n > 1:
            body["n"] = request.n
        body |= self._log_probabilities(request, chat=chat)
        if self.settings.send_priority and "priority" not in self.refused:
            body["priority"] = -request.priority  # negative, since vLLM runs lower priorities first
        return body

    def _log_probabilities(self, request: GenerationRequest, *, chat: bool) -> dict[str, Any]:
        """Return the parameters for log-probabilities, if the job or the settings ask for these."""
        top = request.top_logprobs
        if top is not None:
            return {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
        is_sent = self.settings.log_probabilities and "logprobs" not in self.refused
        return {"logprobs": True if chat else 0} if is_sent else {}


def _tools(request: GenerationRequest, *, chat: bool) -> dict[str, Any]:
    """Return the parameters for tools. Raises RequestRejected if the request's path allows no tools."""
    if not request.tools:
        return {}
    if not chat:
        raise RequestRejected("tools", "this server only completes texts and calls no tools; name a model for chats")
    choice = request.tool_choice
    fields = {
        "tools": [tool.model_dump(exclude_none=True, exclude_defaults=True) for tool in request.tools],
        "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice,
        "parallel_tool_calls": request.parallel_tool_calls,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.text if message.content is not None else None}
    if message.images:
        said["content"] = [_part(part) for part in message.parts]
    if message.tool_calls is not None:
        said["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def _part(part: ImagePart | TextPart) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        inline(part.image_url)  # raises RequestRejected for a URL, which the server would fetch
    return part.model_dump(exclude_none=True)


def _reasoning(asked: Reasoning, *, chat: bool) -> dict[str, Any]:
    """Return the parameters for reasoning: OpenAI's effort, for chats only, and vLLM's cap on the tokens."""
    effort = asked.effort if asked.is_wanted else "none"
    fields = {"reasoning_effort": effort if chat else None, "thinking_token_budget": asked.max_tokens or None}
    return {name: value for name, value in fields.items() if value is not None}


def _messages(request: GenerationRequest) -> Sequence[dict[str, str]]:
    if request.messages is None:
        return [{"role": "user", "content": request.prompt or ""}]
    return [_message(message) for message in request.messages]
