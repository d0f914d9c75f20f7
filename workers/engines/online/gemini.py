"""Google's Gemini API (`POST /v1beta/models/{model}:generateContent`, and `:streamGenerateContent` for a stream)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Annotated, Any, ClassVar
from urllib.parse import quote

from pydantic import Field
from pydantic_core import from_json
from typing_extensions import TypedDict

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS, MAX_TOP_LOGPROBS
from schemas.result import TokenLogprob
from schemas.tools import MAX_TOOL_CALLS, ToolCall
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import (
    Completion,
    GenerationRequest,
    RequestRejected,
    arguments_of,
    inline,
    named_tool,
    numbered_call,
    token_logprob,
    with_calls,
)
from workers.engines.body import Body, passed, text_of
from workers.engines.finish import finish_reason
from workers.engines.online.turns import Turn, options_of, parted
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.server import OF_ACCOUNTS, ModelServer, Usage
from workers.engines.openai_http.settings import RemoteSettings
from workers.engines.openai_http.stream import AnswerStream

_MOST_PARTS = 4096
_OF_A_TOOL = ("name", "description")
_LEVELS: dict[str, str] = {"xhigh": "high"}
"""Maps a job's word for an effort to the service's word, if the two words differ."""
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_ROLES = {"user": "user", "assistant": "model"}


class GeminiSettings(RemoteSettings):
    """Settings of the Gemini API."""

    base_url: str = Field(default="https://generativelanguage.googleapis.com/v1beta", pattern=r"^https?://[^\s]+$")
    """The service's URL, with the version of its API."""


class _FunctionCall(BoundedModel):
    id: str | None = Field(default=None, max_length=256)
    name: str = Field(min_length=1, max_length=256)
    args: dict[str, Any] | None = None


class _Part(BoundedModel):
    text: str = ""
    call: _FunctionCall | None = Field(default=None, alias="functionCall")
    thought: bool = False
    """True if the part is a summary of the model's reasoning."""


class _Content(BoundedModel):
    parts: list[_Part] = Field(default_factory=list, max_length=_MOST_PARTS)


class _LogprobCandidate(TypedDict, total=False):
    """A token as a dictionary.

    The two million candidates of a large answer would take gigabytes if they were pydantic models.
    """

    token: str
    value: Annotated[float, Field(alias="logProbability")]


class _TopCandidates(TypedDict, total=False):
    candidates: Annotated[list[_LogprobCandidate], Field(max_length=MAX_TOP_LOGPROBS)]


class _LogprobsResult(BoundedModel):
    chosen: list[_LogprobCandidate] = Field(default_factory=list, alias="chosenCandidates", max_length=MAX_TOKENS)
    top: list[_TopCandidates] = Field(default_factory=list, alias="topCandidates", max_length=MAX_TOKENS)

    def of_tokens(self, top: int, most: int) -> tuple[TokenLogprob, ...]:
        """Return the log-probabilities of at most `most` tokens of the answer, with `top` alternatives each."""
        chosen = self.chosen[:most]
        above = [[*map(_pair, place.get("candidates", ())[:top])] for place in self.top[: len(chosen)]]
        return tuple(token_logprob(*_pair(each), others) for each, others in zip_longest(chosen, above))


def _pair(found: _LogprobCandidate) -> tuple[str, float]:
    return found.get("token", ""), found.get("value", -math.inf)


class _Candidate(BoundedModel):
    index: int = 0
    logprobs: _LogprobsResult | None = Field(default=None, alias="logprobsResult")
    content: _Content = _Content()
    finish_reason: str | None = Field(default=None, alias="finishReason")
    mean_logprob: float | None = Field(default=None, alias="avgLogprobs", le=0, allow_inf_nan=False)


class _PromptFeedback(BoundedModel):
    block_reason: str | None = Field(default=None, alias="blockReason")


class GeminiAnswer(BoundedModel):
    """The fields of a GenerateContentResponse that this engine reads. A blocked prompt has no candidates."""

    candidates: list[_Candidate] = Field(default_factory=list, max_length=64)
    feedback: _PromptFeedback = Field(default=_PromptFeedback(), alias="promptFeedback")
    usage: Usage = Field(default=Usage(), alias="usageMetadata")


class GeminiStream(AnswerStream):
    """The responses of a stream, each with the next parts of its candidates."""

    def __init__(self) -> None:
        super().__init__()
        self._candidates: dict[int, Body] = {}
        self._others: Body = {}

    def take(self, event: bytes) -> None:
        """Take a response; see `AnswerStream`."""
        answer = GeminiAnswer.model_validate_json(event)
        said = from_json(event)
        self.size += len(event)
        self._others |= {name: said[name] for name in ("usageMetadata", "promptFeedback") if name in said}
        for read, piece in zip(answer.candidates, said.get("candidates", ()), strict=True):
            whole = self._candidates.setdefault(read.index, {"index": read.index, "content": {"parts": []}})
            whole |= {name: piece[name] for name in ("finishReason", "avgLogprobs") if name in piece}
            _add_parts(whole["content"]["parts"], piece.get("content", {}).get("parts", ()))
            if read.logprobs is not None:
                logprobs = whole.setdefault("logprobsResult", {"chosenCandidates": [], "topCandidates": []})
                for name, tokens in logprobs.items():
                    tokens += piece["logprobsResult"].get(name, ())
            if read.index == 0:
                self._text.writelines(part.text for part in read.content.parts if not part.thought)
        is_ended = bool(self._candidates) and all(each.get("finishReason") for each in self._candidates.values())
        self.is_whole = is_ended or answer.feedback.block_reason is not None

    def plain(self) -> Body:
        """Return the whole response."""
        return {"candidates": [*self._candidates.values()], **self._others}


def _add_parts(parts: list[Body], further: Sequence[Body]) -> None:
    """Add parts to those before; a text becomes one with the text before it, since the number of parts is bounded."""
    for part in further:
        last = parts[-1] if parts else {"call": None}
        are_texts = part.keys() | last.keys() <= {"text", "thought"}
        if are_texts and part.get("thought") == last.get("thought"):
            last["text"] = last.get("text", "") + part.get("text", "")
        else:
            parts.append(part)


class GeminiModel(BoundedModel):
    """The answer to `GET /v1beta/models/{model}`."""

    name: str
    input_limit: int | None = Field(default=None, ge=1, alias="inputTokenLimit")
    output_limit: int | None = Field(default=None, ge=0, alias="outputTokenLimit")


class GeminiServer(ModelServer):
    """Google's Gemini API."""

    kind = "gemini"
    account_texts = OF_ACCOUNTS
    parameters: ClassVar[Mapping[str, str]] = {"thinkingConfig": "reasoning.max_tokens", "toolConfig": "tool_choice"}

    def __init__(self, settings: GeminiSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self.model_path = f"models/{quote(self.model.removeprefix('models/'), safe='')}"
        self.generation_path = f"{self.model_path}:generateContent"

    def headers(self, key: str) -> dict[str, str]:
        """Return the key."""
        return {"x-goog-api-key": key}

    def body(self, request: GenerationRequest) -> Body:
        """Return the JSON of a GenerateContentRequest. Raises RequestRejected for a raw prompt."""
        system, turns = parted(request)
        options = passed("gemini", request.body, "max_tokens", "n", "logprobs", "top_logprobs")
        options |= self.temperature(request) | options_of("gemini", request) | _thinking(request)
        if "seed" in options:
            options["seed"] %= 2**31  # cut, since the API's seed is an int32
        form = request.response_format
        if form is not None:
            options["responseMimeType"] = "application/json"
            options |= {"responseJsonSchema": form["json_schema"]["schema"]} if "json_schema" in form else {}
        calls = (call for message in request.messages for call in message.get("tool_calls", ()))
        names = {call["id"]: call["function"]["name"] for call in calls}
        contents = [{"role": _ROLES[turn.role], "parts": _parts(turn, names)} for turn in turns]
        body: Body = {"contents": contents, "generationConfig": options, **_tools(request)}
        if system:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        return body

    stream_options: ClassVar[Mapping[str, Any]] = {}

    def paths(self, request: GenerationRequest) -> Sequence[str]:
        """Return the path for questions, which is another one for a stream."""
        path = f"{self.model_path}:streamGenerateContent?alt=sse" if self.streams(request) else self.generation_path
        return (path,)

    def stream(self, request: GenerationRequest) -> GeminiStream:
        """Return the reader of the events."""
        return GeminiStream()

    def completion(self, body: bytes, request: GenerationRequest) -> Completion:
        """Return the first candidate as a completion; `further` has the other candidates that the request asks for.

        Raises ValueError.
        """
        answer = GeminiAnswer.model_validate_json(body)
        usage = answer.usage
        tokens = usage.prompt_tokens, usage.generated
        if not answer.candidates and answer.feedback.block_reason is None:
            raise ValueError("the answer has neither a candidate nor a block reason")
        if not answer.candidates:
            return Completion("", "content_filter", *tokens, cached_tokens=usage.cached_tokens)
        candidates = sorted(answer.candidates, key=lambda each: each.index)[: request.n]
        first, *further = [_completion(each, request) for each in candidates]
        return replace(
            first,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            reasoning_tokens=usage.thoughts or None,
            cached_tokens=usage.cached_tokens,
            further=tuple(further),
        )

    def window_in(self, body: bytes) -> int | None:
        """Return the largest number of tokens of prompt and answer together; None if the description has no number.

        Raises ValidationError.
        """
        model = GeminiModel.model_validate_json(body)
        return model.input_limit + (model.output_limit or 0) if model.input_limit is not None else None


def _completion(candidate: _Candidate, request: GenerationRequest) -> Completion:
    text = "".join(part.text for part in candidate.content.parts if not part.thought)
    thoughts = "".join(part.text for part in candidate.content.parts if part.thought)
    confidence = math.exp(candidate.mean_logprob) if candidate.mean_logprob is not None else None
    reason = finish_reason(candidate.finish_reason or "unknown")
    logprobs = None
    if request.top_logprobs is not None and candidate.logprobs is not None:
        logprobs = candidate.logprobs.of_tokens(request.top_logprobs, request.max_tokens)
    completion = Completion(text, reason, 0, 0, confidence, thoughts or None, logprobs=logprobs)
    called = [part.call for part in candidate.content.parts if part.call is not None][:MAX_TOOL_CALLS]
    calls = [_call(call, at) for at, call in enumerate(called)]
    return with_calls(completion, calls) if "tools" in request.body else completion


def _call(call: _FunctionCall, number: int) -> ToolCall:
    """Return a call. The call's id may come from `number`, since the service gives most calls no id."""
    arguments = json.dumps(call.args or {}, ensure_ascii=False)
    return numbered_call(call.id, call.name, arguments, number)


def _parts(turn: Turn, names: Mapping[str, str]) -> list[Body]:
    """Return a turn's parts. `names` maps the ids of the chat's calls to their functions. Raises RequestRejected."""
    return [{"text": turn.text}] if turn.is_text else [_part(piece, names) for piece in turn.pieces]


def _part(piece: Body, names: Mapping[str, str]) -> Body:
    if piece["type"] == "tool":
        name = names.get(piece["tool_call_id"])
        if name is None:
            raise RequestRejected("messages", "`tool_call_id` names no call of an earlier message")
        return {"functionResponse": {"name": name, "response": {"result": text_of(piece)}}}
    if piece["type"] == "function":
        return {"functionCall": {"name": piece["function"]["name"], "args": arguments_of(piece)}}
    if piece["type"] == "text":
        return {"text": piece["text"]}
    media_type, data = inline(piece["image_url"])
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _tools(request: GenerationRequest) -> Body:
    """Return the parameters for tools; `ANY` is the service's word for `required`. Raises RequestRejected."""
    if "tools" not in request.body:
        return {}
    if request.body.get("parallel_tool_calls") is False:
        raise RequestRejected("parallel_tool_calls", "this service has no such bound; remove the field")
    declared = []
    for function in (tool["function"] for tool in request.body["tools"]):
        schema = {"parametersJsonSchema": function["parameters"]} if function["parameters"] else {}
        declared.append({**{name: function[name] for name in _OF_A_TOOL if name in function}, **schema})
    name = named_tool(request.tool_choice)
    config: Body = {"mode": _MODES[str(request.tool_choice or "auto")]} if name is None else {"mode": "ANY"}
    if name is not None:
        config["allowedFunctionNames"] = [name]
    return {"tools": [{"functionDeclarations": declared}], "toolConfig": {"functionCallingConfig": config}}


def _thinking(request: GenerationRequest) -> Body:
    """Return the thinking options: newer models take a level, and models of the previous generation take a budget."""
    if request.reasons is None:
        return {}
    if not request.reasons:
        return {"thinkingConfig": {"thinkingBudget": 0}}
    effort, budget = request.body.get("reasoning_effort"), request.body.get("thinking_token_budget")
    level = _LEVELS.get(effort, effort) if effort is not None else None
    fields = {"thinkingBudget": budget, "thinkingLevel": level, "includeThoughts": True}
    return {"thinkingConfig": {name: value for name, value in fields.items() if value is not None}}


Settings = GeminiSettings


def create(settings: GeminiSettings, metrics: Metrics, clock: Clock) -> HttpEngine:
    """Make the engine of a worker; see `EngineModule`."""
    return HttpEngine(GeminiServer(settings, clock), metrics)
