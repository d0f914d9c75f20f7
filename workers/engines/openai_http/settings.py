"""Settings of the engines whose models run at a server."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, SecretStr

from workers.engines.settings import EngineSection


class RemoteSettings(EngineSection):
    """The settings of every server."""

    needs_package: ClassVar[tuple[str, str] | None] = ("aiohttp", "worker")
    registry_fields: ClassVar[tuple[str, ...]] = ("context_tokens", "images")

    base_url: str = Field(default="", pattern=r"^https?://[^\s]+$")
    """The service's URL, with the version of its API."""
    api_key: SecretStr | None = None
    """The service's key."""
    context_tokens: int | None = Field(default=None, ge=16)
    """Tokens of prompt and answer together. If the service reports the model's window, the smaller number is used."""
    images: bool | None = None
    """True if the model reads images, false if not; if absent, the family decides, found by the model's name."""
    max_concurrency: int = Field(default=32, ge=1, le=8192)
    """Cap on the requests at the service at once; further requests wait in the worker.

    The worker begins with 16, and sends fewer after a 408, 429, 503, 529 or timeout.
    """
    attempts: int = Field(default=4, ge=1, le=20)
    """Tries of one request before it fails."""
    request_timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)
    """Seconds for one request with all its attempts."""
    start_timeout_seconds: float = Field(default=600.0, ge=0, le=86_400)
    """Seconds that the service may be away, or take to start, before the worker gives up."""


class OpenAISettings(RemoteSettings):
    """Settings of a server that speaks OpenAI's protocol."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"^https?://[^\s]+$")
    """The server's URL, with its `/v1`."""
    api: Literal["chat", "completions"] = "chat"
    """The server's API. With `chat`, a plain prompt becomes one user message, and only a raw prompt is completed."""
    max_concurrency: int = Field(default=256, ge=1, le=8192)
    """Cap on the requests at the server at once; further requests wait in the worker. The default is vLLM's
    `max_num_seqs` on most devices.

    The worker sends fewer requests at once if the server's `/metrics`, like that of vLLM, states how many requests wait
    at the server. At any other server the worker begins with 16, and sends fewer after a 408, 429, 503 or timeout.
    """
    log_probabilities: bool = True
    """Ask for the answers' log-probabilities, from which `confidence` is computed. They cost vLLM time, and some
    servers refuse requests with `logprobs`."""
