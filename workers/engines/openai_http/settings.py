"""Settings of the server that speaks OpenAI's protocol, read from `POSTBACK_ENGINE__OPENAI__…`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from workers.engines.settings import EngineSection


class OpenAISettings(EngineSection):
    """Any server that speaks OpenAI's protocol."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"^https?://[^\s]+$")
    """Where the server is, with its `/v1`."""
    api_key: SecretStr | None = None
    """What the server wants as its bearer token."""
    model: str | None = None
    """What the server is asked for, where `--model` does not say it."""
    api: Literal["chat", "completions"] = "chat"
    """Which of the two a request becomes. With `chat`, a plain prompt is one message of a user."""
    context_tokens: int | None = Field(default=None, ge=16)
    """Tokens of prompt and answer together. A vLLM server says it itself; the smaller one counts."""
    max_concurrency: int = Field(default=256, ge=1, le=8192)
    """Requests at the server at once; more wait here. What a vLLM server generates at once unless it is told otherwise.

    Fewer leave its GPU idle. More than it has places for wait there, within `request_timeout_seconds`.
    """
    attempts: int = Field(default=4, ge=1, le=20)
    """Tries of one request before it counts as not answered."""
    request_timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)
    """For one request with all its attempts."""
    start_timeout_seconds: float = Field(default=600.0, ge=0, le=86_400)
    """How long the server may take to come up before the worker gives up."""
    max_response_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """The largest answer that is read."""
    log_probabilities: bool = True
    """Whether the server is asked for log-probabilities. Off for a server that refuses requests with `logprobs`."""
    send_priority: bool = False
    """Whether `priority` is sent, as a vLLM server that schedules by priority wants it."""
