"""Protection of a process's secrets from other processes of the same user.

Without this protection, any process of the same user may read `/proc/PID/environ` and `/proc/PID/mem`, see ptrace(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from typing import Final

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38


def harden_process() -> None:
    """Stop other processes of the user from reading this process, disable core dumps, and gain no privileges by exec.

    On systems other than Linux this only disables core dumps. Child programs are not protected from being read, but
    they inherit the limit of core dumps and gain no privileges. A debugger or profiler needs CAP_SYS_PTRACE to attach.
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_NO_NEW_PRIVS, 1)


def prctl(option: int, value: int) -> None:
    """Change an attribute of this process with Linux's prctl. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
