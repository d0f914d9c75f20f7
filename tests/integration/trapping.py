"""Ends a confined process at a call that its list does not have, and names the call.

In production the kernel refuses such a call, and the process goes on: a new libc must not end all readers. A test must
notice the call, since the refusal may change what is read.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from functools import partial
from pathlib import Path

from workers.processes import confinement

CONFINED = ("workers.enrichment.", "workers.screening.classifier_model")
"""The beginnings of the modules' names that run as confined processes."""
_TRAP = 0x00030000
"""SECCOMP_RET_TRAP: the kernel sends SIGSYS instead of making the call."""
_SA_SIGINFO = 4
_CALL_OFFSET = 24
"""Offset of si_syscall in siginfo_t."""


class _Action(ctypes.Structure):
    """struct sigaction of glibc."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def trap(calls: str) -> None:
    """Make this process, if it is one that will be confined, end at a call that is not listed.

    The call's number is added to the file `calls`, as a line.
    """
    if not any(argument.startswith(CONFINED) for argument in sys.orig_argv):
        return
    output = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def name(_: int, information: int, __: int) -> None:
        number = ctypes.c_int.from_address(information + _CALL_OFFSET).value
        os.write(output, f"{number}\n".encode())
        os._exit(1)

    handler = _Handler(name)
    action = _Action(handler=ctypes.cast(handler, ctypes.c_void_p), flags=_SA_SIGINFO)
    if ctypes.CDLL(None).sigaction(signal.SIGSYS, ctypes.byref(action), None) != 0:
        raise OSError("sigaction")
    trap.kept = handler  # type: ignore[attr-defined]  # ctypes does not keep it alive
    confinement.filter_program = partial(confinement.filter_program, otherwise=_TRAP)


def hook(folder: Path, calls: Path) -> None:
    """Write the module that Python imports at each start, if `folder` is on PYTHONPATH."""
    (folder / "sitecustomize.py").write_text(f"from tests.integration.trapping import trap\ntrap({str(calls)!r})\n")


def named(calls: Path) -> list[str]:
    """Return the calls at which processes ended, by their names if the tables of calls have them."""
    column = confinement.ARCHITECTURES[platform.machine()].column
    tables = (confinement._COMPUTING, confinement._READING_FILES, confinement._EXECUTING)
    names = {numbers[column]: name for table in tables for name, numbers in table.items()}
    numbers = {int(line) for line in calls.read_text().split()} if calls.exists() else set()
    return sorted(names.get(number, f"call {number}") for number in numbers)
