"""OpenAI's chat completions and completions: a request's body passes as it is, but for what the server refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from telemetry.clock import Clock
from workers.engines.base import Completion, GenerationRequest, RequestRejected, first_requests, inline, require_texts
from workers.engines.body import FIELDS, Body, parts_of, passed, plain_text
from workers.engines.openai_http.answers import Answer, read_chat
from workers.engines.openai_http.pooling import SERVER_ENDPOINTS
from workers.engines.openai_http.pooling import completion_of as pooled
from workers.engines.openai_http.server import ModelServer, question_of
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
        """Add a completion or a chunk to the answer. Raises ValueError."""
        read_chat(document, answer)

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
