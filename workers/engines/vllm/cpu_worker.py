"""vLLM's CPU worker, with a request to the kernel for permission to use Advanced Matrix Extensions (AMX).

vLLM 0.32 computes bfloat16 attention with AMX, and relies on another library to have asked for permission. A small
model uses no such library, and its first tile instruction ends the worker with SIGILL.
"""

from __future__ import annotations

import logging

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

log = logging.getLogger(__name__)  # not this project's logging, which vLLM's processes do not use


class AmxWorker(CPUWorker):
    """Asks for the permission to use AMX tiles before the first computation.

    The permission belongs to a process and ends with an exec (Linux, Documentation/arch/x86/xstate.rst). So a spawned
    worker cannot inherit the permission from its parent.
    """

    def init_device(self) -> None:
        """Ask for AMX, then run vLLM's own `init_device`."""
        if not torch.cpu._init_amx():
            fix = '{"dtype": "float32"}'
            log.warning("Linux refuses AMX; going on. If the worker dies, set POSTBACK_ENGINE__VLLM__EXTRA=%s", fix)
        super().init_device()  # type: ignore[no-untyped-call]
