"""Settings of the engines, read from `POSTBACK_ENGINE__…`, for example `POSTBACK_ENGINE__VLLM__MAX_MODEL_LEN`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class _EngineSection(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class EchoSettings(_EngineSection):
    """The development engine."""

    latency_seconds: float = Field(default=0.0, ge=0, le=3600)
    """How long each answer takes."""


class VllmSettings(_EngineSection):
    """vLLM in this process."""

    model: str | None = None
    """A directory, or a name on the Hugging Face hub, where `--model` does not say it."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto` is the model's own, or float32 on a CPU that has no bfloat16 instructions."""
    max_model_len: int | None = Field(default=None, ge=16)
    """Tokens of prompt and answer together; absent, the longest that the model and the memory allow."""
    max_num_seqs: int = Field(default=256, ge=1, le=8192)
    """Requests that are generated at once."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """The part of a GPU's memory that vLLM takes for itself."""
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs; absent, only on a CPU."""
    log_probabilities: bool = True
    """Whether the engine is asked for the answers' log-probabilities, from which `confidence` is computed."""
    stop: tuple[str, ...] = ()
    """Texts that end every answer: a base model without instruction tuning runs on behind its answer."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters: name to directory. As JSON."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More of vLLM's engine arguments, for example `{"tensor_parallel_size": 2}`. As JSON."""


class OpenAISettings(_EngineSection):
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


class EngineSettings(BaseSettings):
    """One section for each engine."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_ENGINE__",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    echo: EchoSettings = Field(default_factory=EchoSettings)
    vllm: VllmSettings = Field(default_factory=VllmSettings)
    openai: OpenAISettings = Field(default_factory=OpenAISettings)
