"""Google's Gemini API (`POST /v1beta/models/{model}:generateContent`, and `:streamGenerateContent` for a stream)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field
from typing_extensions import TypedDict

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS, MAX_TOP_LOGPROBS
from workers.engines.answers import Alternative, Answer, Numbered, Token, Usage, by_index
from workers.engines.base import GenerationRequest, RequestRejected, arguments_of, inline, named_tool
from workers.engines.body import Body, passed, text_of
from workers.engines.online.turns import Turn, options_of, parted
from workers.engines.openai_http.engine import engine_of
from workers.engines.openai_http.server import OF_ACCOUNTS, ModelServer
from workers.engines.openai_http.settings import RemoteSettings

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


class _TopCandidates(TypedDict, total=False):
    candidates: Annotated[list[Alternative], Field(max_length=MAX_TOP_LOGPROBS)]


class _LogprobsResult(BoundedModel):
    chosen: list[Alternative] = Field(default_factory=list, alias="chosenCandidates", max_length=MAX_TOKENS)
    top: list[_TopCandidates] = Field(default_factory=list, alias="topCandidates", max_length=MAX_TOKENS)

    @property
    def tokens(self) -> list[Token]:
        """The chosen tokens, each with the likeliest tokens at its place."""
        above: list[_TopCandidates] = self.top[: len(self.chosen)]
        pairs = zip_longest(self.chosen, above, fillvalue=_TopCandidates())
        return [cast("Token", {**chosen, "top_logprobs": top.get("candidates", [])}) for chosen, top in pairs]


class _Candidate(Numbered):
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


class GeminiServer(ModelServer):
    """Google's Gemini API."""

    kind = "gemini"
    model_path = "models/{model}"
    describes_model = True
    generation_path = "models/{model}:generateContent"
    stream_options: ClassVar[Mapping[str, Any]] = {}
    account_texts = OF_ACCOUNTS
    parameters: ClassVar[Mapping[str, str]] = {"thinkingConfig": "reasoning.max_tokens", "toolConfig": "tool_choice"}

    def headers(self, key: str) -> dict[str, str]:
        """Return the key."""
        return {"x-goog-api-key": key}

    def body(self, request: GenerationRequest) -> Body:
        """Return the JSON of a GenerateContentRequest. Raises RequestRejected for a raw prompt."""
        system, turns = parted(request)
        options = passed("gemini", request.body, "max_tokens", "n", "logprobs", "top_logprobs")
        options |= options_of("gemini", request) | _thinking(request)
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

    def paths(self, request: GenerationRequest) -> Sequence[str]:
        """Return the path for questions, which is another one for a stream."""
        path = f"{self.model_path}:streamGenerateContent?alt=sse" if self.streams(request) else self.generation_path
        return (path,)

    def answer(self, request: GenerationRequest) -> Answer:
        """Return an answer that is not known to be whole without a reason for its end."""
        return Answer(request, no_reason="unknown")

    def read(self, document: bytes, answer: Answer) -> None:
        """Add a response, which has the next parts of its candidates in a stream, to the answer. Raises ValueError."""
        read = GeminiAnswer.model_validate_json(document)
        answer.count(read.usage)
        for index, candidate in by_index(read.candidates):
            choice = answer.choice(index)
            for part in candidate.content.parts:
                (choice.think if part.thought else choice.say)(part.text)
                if part.call is not None:
                    choice.call(part.call.name, part.call.args or {}, part.call.id or "")
            if candidate.logprobs is not None:
                choice.likely(candidate.logprobs.tokens)
            choice.mean_logprob = candidate.mean_logprob if candidate.mean_logprob is not None else choice.mean_logprob
            choice.end(candidate.finish_reason)
        if read.feedback.block_reason is not None and not answer.choices:
            answer.choice().end("content_filter")
        answer.is_whole = answer.has_ended


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

create = engine_of(GeminiServer)
