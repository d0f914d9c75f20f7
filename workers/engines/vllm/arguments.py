"""The start of vLLM: its engine arguments, and the environment variables that it reads on import."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Any

from workers.engines.vllm.settings import VllmSettings


def engine_arguments(settings: VllmSettings, adapters: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `AsyncEngineArgs`, including the adapters' arguments. Imports vLLM."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": "float32" if on_cpu and not _cpu_has_bfloat16() else "auto",
        # -1 stands for the longest context that fits into memory
        "max_model_len": settings.context_tokens if settings.context_tokens is not None else -1,
        "max_num_seqs": settings.max_concurrency,  # None stands for vLLM's default
        "enforce_eager": on_cpu,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # Allow only compact JSON, because some models would otherwise write nothing but white space until max_tokens.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if on_cpu and _cpu_has_amx():
        arguments["worker_cls"] = "workers.engines.vllm.cpu_worker.AmxWorker"
    if settings.revision is not None:
        arguments |= {"revision": settings.revision, "tokenizer_revision": settings.revision}
    return arguments | settings.extra | adapters


def forget_inspections() -> None:
    """Make vLLM inspect the model's class again; vLLM's cache files stay.

    vLLM inspects the class in a subprocess, and caches the result in memory, even a failure. An inspection fails if its
    engine is closed meanwhile, and without this call no later engine in the process would load.
    """
    from vllm.model_executor.models import registry

    registry._try_inspect_model_cls.cache_clear()


def prepare_environment(model: str) -> None:
    """Set the variables that vLLM reads on import and vLLM's processes inherit.

    vLLM's own log handlers are off, so that warnings of vLLM and of its processes (`process_log`) go to the worker's
    log.
    """
    logging.getLogger("vllm").setLevel(logging.WARNING)
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # since a fork of a process with threads and sockets may hang
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
    }
    if Path(model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _cpu_has_bfloat16() -> bool:
    """True if this CPU has bfloat16 instructions; without them float32 is many times faster."""
    if platform.machine() != "x86_64":
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_has_amx() -> bool:
    import torch

    return bool(torch.cpu._is_amx_tile_supported())
