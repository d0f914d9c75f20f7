"""vLLM's worker on a CPU with Advanced Matrix Extensions (AMX), which a process must ask the kernel for.

vLLM 0.32 computes attention in bfloat16 with them and leaves the asking to whichever library used them before. With a
small model that is none, and the first instruction on a tile ends the worker with SIGILL.
"""

from __future__ import annotations

import logging

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

log = logging.getLogger(__name__)  # as vLLM itself does: in its processes nobody has set up ours


class AmxWorker(CPUWorker):
    """Asks for the tiles' state before anything computes.

    Linux, Documentation/arch/x86/xstate.rst: the permission is a process's, and an exec ends it, so that this one
    cannot have it from the process that spawned it.
    """

    def init_device(self) -> None:
        """As vLLM's does."""
        if not torch.cpu._init_amx():
            log.warning("Linux refuses AMX: where the worker dies, set POSTBACK_ENGINE__VLLM__DTYPE=float32")
        super().init_device()  # type: ignore[no-untyped-call]
