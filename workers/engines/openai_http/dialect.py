"""Requests to a server that speaks OpenAI's protocol, with the parameters that the server takes.

The engine sends some parameters that no job asked for, and some models refuse these parameters. OpenAI's reasoning
models want `max_completion_tokens` instead of `max_tokens`, and take neither `logprobs` nor a temperature. No job is at
fault for such a refusal, so the process remembers the refused parameter and leaves it out from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from schemas.bounded import BoundedModel
from schemas.job import ImagePart, Message, Reasoning, TextPart
from schemas.tools import NamedTool
from telemetry.logs import get_logger
from workers.engines.base import GenerationRequest, RequestRejected, inline, require_texts
from workers.engines.openai_http.pooling import SERVER_ENDPOINTS
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.prompts import plain_text

log = get_logger()

CHAT = "chat/completions"
COMPLETIONS = "completions"
_OF_TEXTS = frozenset(path for endpoint in SERVER_ENDPOINTS.values() for path in endpoint.paths)
"""The paths for jobs without a question."""


class ServerProblem(BoundedModel):
    """The error object of OpenAI's protocol."""

    message: str = ""
    param: str | None = None
    code: str | int | None = None

    @property
    def is_of_length(self) -> bool:
        """True if the error is a too long prompt. vLLM and OpenAI write the first phrase, llama.cpp the second."""
        return any(words in self.message for words in ("maximum context length", "exceeds the available context size"))


class _Refusal(BoundedModel):
    error: ServerProblem


def problem_in(body: bytes) -> ServerProblem:
    """Return the error in a server's refusal; an empty error if the body has no error object."""
    try:
        return _Refusal.model_validate_json(body).error
    except ValidationError:
        return ServerProblem()


class Dialect:
    """The parameters that one server takes. `model` is the server's name for the model."""

    def __init__(self, model: str, settings: OpenAISettings) -> None:
        self._model = model
        self._settings = settings
        self._refused: set[str] = set()
        """Parameters that the server has refused."""
        self._found: set[str] = set()
        """Paths at which the server has answered a request."""

    def path(self, request: GenerationRequest) -> str:
        """Return the path of the request below the server's URL. A raw prompt never goes to the path for chats."""
        return self.paths(request)[0]

    def paths(self, request: GenerationRequest) -> Sequence[str]:
        """Return the paths to try one after the other while the server answers 404."""
        if request.pooling is None:
            return (CHAT if self._settings.api == "chat" and not request.is_raw else COMPLETIONS,)
        paths = SERVER_ENDPOINTS[request.pooling.kind.field].paths
        return sorted(paths, key=lambda path: path not in self._found)

    def found(self, path: str) -> None:
        """Remember that the server has this path, and try the path first from now on."""
        self._found.add(path)

    def is_usual(self, request: GenerationRequest) -> bool:
        """True if the settings chose the request's path; False if the job chose it.

        Also False if the server, such as a reranker, has answered only jobs without a question. A job with a question
        is then at fault.
        """
        if self._found and self._found <= _OF_TEXTS:
            return False
        return self._settings.api == "completions" or not (request.is_raw or request.pooling is not None)

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """Return the request's JSON for its `path`."""
        if request.pooling is not None:
            return {"model": self._model, **SERVER_ENDPOINTS[request.pooling.kind.field].body(request.pooling)}
        chat = self.path(request) == CHAT
        longest = "max_completion_tokens" if "max_tokens" in self._refused else "max_tokens"
        body: dict[str, Any] = {"model": self._model, longest: request.max_tokens}
        if chat:
            body["messages"] = _messages(request)
        else:
            require_texts(request, "the server completes texts here and reads no images; name a model for chats")
            body["prompt"] = request.prompt if request.prompt is not None else plain_text(request.messages or ())
        is_refused = request.temperature_is_default and "temperature" in self._refused
        if request.temperature is not None and not is_refused:
            body["temperature"] = request.temperature
        if request.seed is not None:
            body["seed"] = request.seed
        if request.reasoning is not None:
            body |= _reasoning(request.reasoning, chat=chat)
        if request.top_p is not None:
            body["top_p"] = request.top_p
        if request.stop:
            body["stop"] = list(request.stop)
        if request.response_format is not None and request.response_format.type != "text":
            body["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
        body |= _tools(request, chat=chat)
        if request.n > 1:
            body["n"] = request.n
        body |= self._log_probabilities(request, chat=chat)
        if self._settings.send_priority and "priority" not in self._refused:
            body["priority"] = -request.priority  # negative, since vLLM runs lower priorities first
        return body

    def _log_probabilities(self, request: GenerationRequest, *, chat: bool) -> dict[str, Any]:
        """Return the parameters for log-probabilities, if the job or the settings ask for these."""
        top = request.top_logprobs
        if top is not None:
            return {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
        is_sent = self._settings.log_probabilities and "logprobs" not in self._refused
        return {"logprobs": True if chat else 0} if is_sent else {}

    def learns(self, request: GenerationRequest, sent: Mapping[str, Any], problem: ServerProblem) -> bool:
        """Remember a refused parameter that no job set.

        Return True if the request may be sent again without the parameter.
        """
        name = "logprobs" if problem.param == "top_logprobs" else problem.param
        if name is None or name not in sent:
            return False
        is_ours = (
            name == "priority"
            or (name == "logprobs" and request.top_logprobs is None)
            or (name == "temperature" and request.temperature_is_default)
            # with another code, the job's own `max_tokens` is at fault
            or (name == "max_tokens" and problem.code == "unsupported_parameter")
        )
        if is_ours and name not in self._refused:
            log.warning(
                "The server does not take a parameter; leaving it out from now on.",
                action="engine-parameter-refused",
                parameter=name,
            )
            self._refused.add(name)
        return is_ours


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
