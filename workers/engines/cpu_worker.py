"""vLLM's worker on a CPU with Advanced Matrix Extensions (AMX), which a process must ask the kernel for.

vLLM 0.32 computes attention in bfloat16 with them and leaves the asking to whichever library used them before. With a
small model that is none, and the first instruction on a tile ends the worker with SIGILL.
"""

from __future__ import annotations

import torch
from vllm.v1.worker.cpu_worker import CPUWorker


class AmxWorker(CPUWorker):
    """Asks for the tiles' state before anything computes.

    Linux, Documentation/arch/x86/xstate.rst: the permission is a process's, and an exec ends it, so that this one
    cannot have it from the process that spawned it.
    """

    def init_device(self) -> None:
        """As vLLM's does."""
        torch.cpu._init_amx()
        super().init_device()  # type: ignore[no-untyped-call]
