"""Settings of vLLM, read from `POSTBACK_ENGINE__VLLM__…`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from workers.engines.settings import EngineSection


class VllmSettings(EngineSection):
    """Settings of vLLM in the worker's process."""

    needs_package: ClassVar[tuple[str, str] | None] = ("vllm", "vllm")
    registry_fields: ClassVar[tuple[str, ...]] = ("revision", "context_tokens", "adapters")

    revision: str | None = None
    """The branch, tag or commit of a model from the Hugging Face hub; if absent, the hub's default."""
    context_tokens: int | None = Field(default=None, ge=16)
    """Tokens of prompt and answer together; if absent, the most that the model and the memory allow."""
    max_concurrency: int | None = Field(default=None, ge=1, le=8192)
    """Requests that vLLM generates at once; if absent, vLLM's default: 1,024 on an H100, 256 on a CPU."""
    hung_seconds: float = Field(default=120.0, ge=1, le=3600)
    """Seconds in which vLLM's processes must answer a health call; else they are killed, and the model is loaded again.

    vLLM answers between two steps, so the longest step of the model must be shorter. Raise this for a large model on a
    CPU, where a step takes minutes.
    """
    log_probabilities: bool = True
    """Ask for the answers' log-probabilities, from which `confidence` is computed. They cost vLLM time, and some
    servers refuse requests with `logprobs`."""
    stop: tuple[str, ...] = ()
    """Texts that end every answer, for a base model, which would otherwise go on after its answer."""
    tool_parser: str | None = None
    """The name of vLLM's tool parser; if absent, the parser of the model's family, found by the model's name."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters as JSON: each name with its directory.

    The worker loads the adapters at its start. An adapter that cannot be loaded is refused, and the jobs for it are
    rejected.
    """
    extra: dict[str, Any] = Field(default_factory=dict)
    """More of vLLM's engine arguments, as JSON: for example `{"tensor_parallel_size": 2}`, `{"dtype": "float32"}`,
    `{"gpu_memory_utilization": 0.5}` or `{"enforce_eager": true}`.

    With `{"disable_log_stats": false}` the worker exports a few of vLLM's own metrics, `postback_engine_…`, which cost
    CPU time in each step of the model.

    `max_loras` is the number of adapters that one batch may use, by default the number at the start, at most 8.
    `max_lora_rank` is by default the largest rank at the start: set it if adapters are added to the model registry's
    file later, since a worker that starts without adapters has no room for them otherwise.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The model's names. Results show the first name, because consumers have no use for the operator's path."""
        folder = Path(self.model or "")
        return (folder.resolve().name, str(self.model)) if folder.is_dir() else (str(self.model),)
