"""OpenAI's chat completions and completions: a request's body passes as it is, but for what the server refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import AliasChoices, Field

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS
from schemas.tools import MAX_TOOL_CALLS
from telemetry.clock import Clock
from workers.engines.answers import MOST_CHOICES, MOST_TOP, Alternative, Answer, Numbered, Token, Usage, by_index
from workers.engines.base import Completion, GenerationRequest, RequestRejected, first_requests, inline, require_texts
from workers.engines.body import FIELDS, Body, parts_of, passed, plain_text
from workers.engines.openai_http.pooling import SERVER_ENDPOINTS
from workers.engines.openai_http.pooling import completion_of as pooled
from workers.engines.openai_http.server import DONE, ModelServer, question_of
from workers.engines.openai_http.settings import OpenAISettings

CHAT = "chat/completions"
COMPLETIONS = "completions"
_OF_TEXTS = frozenset(path for endpoint in SERVER_ENDPOINTS.values() for path in endpoint.paths)
"""The paths for jobs without a question."""
_OF_CHATS = ("reasoning_effort", "logprobs", "top_logprobs")
"""Members that the path for completions lacks or has in another form."""


class OpenAIServer(ModelServer):
    """A server of OpenAI's chat completions and completions."""

    settings: OpenAISettings
    kind = "openai"
    reports_load = True
    firsts = first_requests("first-request", "Hello.", 16, 0.0)
    """A reranker does not answer questions, so texts to embed, score, rank and classify are tried too."""
    parameters: ClassVar[Mapping[str, str]] = {"max_completion_tokens": "max_tokens", "dimensions": "dimensions"}

    stream_options: ClassVar[Mapping[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}

    def __init__(self, settings: OpenAISettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        family = settings.model_family()
        self._marks = family.reasoning if family is not None else None

    def completion(self, body: bytes, request: GenerationRequest) -> Completion:
        """Return the answer to the request. Raises ValueError and EngineError."""
        if request.pooling is not None:
            return pooled(request.pooling, body)
        return super().completion(body, request)

    def answer(self, request: GenerationRequest) -> Answer:
        """Return an answer that knows the marks of the family's reasoning."""
        return Answer(request, self._marks)

    def read(self, document: bytes, answer: Answer) -> None:
        """Add a chat completion, a completion, or a chunk of one of them to the answer. Raises ValueError."""
        if document == DONE:
            answer.is_whole = True
            return
        read = _ChatCompletion.model_validate_json(document)
        answer.count(read.usage)
        for index, each in by_index(read.choices):
            choice, said = answer.choice(index), each.said or _Said(content=each.text)
            choice.say(said.content or "")
            choice.think(said.reasoning or said.reasoning_content or "")
            choice.refuse(said.refusal or "")
            for call in said.tool_calls or ():
                function = call.function
                choice.call(function.name or "", function.arguments or "", call.id or "", call.index)
            if each.logprobs is not None and (tokens := each.logprobs.all()) is not None:
                choice.likely(tokens)
            choice.end(each.finish_reason)
        answer.is_whole = answer.is_whole or (answer.has_ended and len(answer.choices) >= answer.request.n)

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
        is_chat = self.paths(request)[0] == CHAT
        body: Body = {"model": self.model, **passed("openai", request.body, *FIELDS)}
        if is_chat:
            body["messages"] = request.messages
            for part in (part for message in request.messages for part in parts_of(message)):
                if part["type"] == "image_url":
                    inline(part["image_url"])  # raises RequestRejected for a URL, which the server would fetch
        else:
            body = {name: value for name, value in body.items() if name not in _OF_CHATS}
            body["prompt"] = _prompt(request)
        if "max_tokens" in self.refused:
            body["max_completion_tokens"] = body.pop("max_tokens")
        if request.top_logprobs is not None or self.settings.log_probabilities:
            body["logprobs"] = True if is_chat else request.top_logprobs or 0
        return body


def _prompt(request: GenerationRequest) -> str:
    """Return the request's text for the path for completions. Raises RequestRejected for a chat's options."""
    require_texts(request, "the server completes texts here and reads no images; name a model for chats")
    if "tools" in request.body:
        raise RequestRejected("tools", "this server only completes texts and calls no tools; name a model for chats")
    prompt: str = request.body["prompt"] if request.is_raw else plain_text(request.messages)
    return prompt


# -- Answers --
class _Logprobs(BoundedModel):
    content: list[Token] | None = Field(default=None, max_length=MAX_TOKENS)
    """Log-probabilities in the form of chat completions."""
    token_logprobs: list[float | None] | None = Field(default=None, max_length=MAX_TOKENS)
    """Log-probabilities in the form of completions."""
    tokens: list[str] | None = Field(default=None, max_length=MAX_TOKENS)
    """The tokens of `token_logprobs`, in the form of completions."""
    top_logprobs: list[dict[str, float | None] | None] | None = Field(default=None, max_length=MAX_TOKENS)
    """The likeliest tokens at each place, in the form of completions."""

    def all(self) -> list[Token] | None:
        """Return the tokens in the form of chat completions; None if the server gave none."""
        if self.content is not None or self.token_logprobs is None:
            return self.content
        tokens = self.tokens or [""] * len(self.token_logprobs)
        above = self.top_logprobs or [None] * len(tokens)
        return [
            {"token": token, "logprob": value, "top_logprobs": _sorted(others or {})}
            for token, value, others in zip(tokens, self.token_logprobs, above, strict=False)
        ]


def _sorted(others: Mapping[str, float | None]) -> list[Alternative]:
    pairs = sorted(others.items(), key=lambda pair: -math.inf if pair[1] is None else pair[1], reverse=True)
    return [{"token": token, "logprob": value} for token, value in pairs[:MOST_TOP]]


class _Function(BoundedModel):
    name: str | None = Field(default=None, max_length=256)
    arguments: str | dict[str, Any] | None = None
    """A text of JSON; some servers give the object instead of the text."""


class _Call(BoundedModel):
    index: int | None = None
    id: str | None = Field(default=None, max_length=256)
    function: _Function


class _Said(BoundedModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = Field(default=None, max_length=MAX_TOOL_CALLS)
    reasoning: str | None = None
    """The reasoning, in the field that vLLM and OpenRouter use."""
    reasoning_content: str | None = None
    """The reasoning, in the field that DeepSeek, llama.cpp, SGLang and older vLLM use."""


class _Choice(Numbered):
    said: _Said | None = Field(default=None, validation_alias=AliasChoices("message", "delta"))
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _ChatCompletion(BoundedModel):
    choices: list[_Choice] = Field(default_factory=list, max_length=MOST_CHOICES)
    usage: Usage | None = None
