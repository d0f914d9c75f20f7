"""A real reader process that attempts given actions, like a page that has taken the reader over.

This module runs in place of `workers.enrichment.processes.member` and calls that module's `main`; only the task
differs. With the last argument `parent`, the process is confined like the process that has started tesseract.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from workers.enrichment.processes import member
from workers.system.secrecy import PR_SET_DUMPABLE, prctl

_PTRACE_ATTACH = 16
_F_SETOWN_EX, _F_OWNER_PID, _FIOSETOWN, _SIOCSPGRP = 15, 1, 0x8901, 0x8902
_IPC_PRIVATE = 0
_PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}[os.uname().machine]


def probe(body: bytes) -> dict[str, Any]:
    """The outcome of each attempt: the name of its errno, or `done`."""
    told = json.loads(body)
    parent, files = os.getppid(), [*told["files"]]
    attempts: dict[str, Callable[[], object]] = {name: Path(name).read_bytes for name in files}
    attempts |= {
        "environ": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "mem": lambda: os.close(os.open(f"/proc/{parent}/mem", os.O_RDONLY)),
        "write": lambda: Path(told["writable"]).write_text("x"),
        "remove": lambda: Path(told["removable"]).unlink(),
        "stat": lambda: Path(told["removable"]).stat(),
        "mode": lambda: Path(told["removable"]).chmod(0o600),
        "owner": lambda: os.chown(told["removable"], 0, 0),
        "times": lambda: os.utime(told["removable"]),
        "attribute": lambda: os.setxattr(told["removable"], "user.x", b"x"),
        "mode_of_input": lambda: os.fchmod(0, 0o600),
        "shared_memory": lambda: _call("shmget", _IPC_PRIVATE, 4096, 0o600),
        "messages": lambda: _call("msgget", _IPC_PRIVATE, 0o600),
        "semaphore": lambda: _call("semget", _IPC_PRIVATE, 1, 0o600),
        "memory_file": lambda: os.memfd_create("x"),
        "folder": lambda: os.chdir("/"),
        "priority": lambda: os.setpriority(os.PRIO_PROCESS, parent, 10),
        "cores_of_parent": lambda: os.sched_setaffinity(parent, {0}),
        "dumpable": lambda: prctl(PR_SET_DUMPABLE, 1),
        "tcp": lambda: socket.create_connection(("127.0.0.1", told["port"]), timeout=5),
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "fork": _forked,
        "signal": lambda: os.kill(parent, 0),
        "signal_thread": lambda: _call("tgkill", parent, parent, 0),
        "file_owner": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, parent),
        "file_owner_ex": lambda: fcntl.fcntl(0, _F_SETOWN_EX, struct.pack("ii", _F_OWNER_PID, parent)),
        "socket_owner": lambda: fcntl.ioctl(0, _FIOSETOWN, struct.pack("i", parent)),
        "socket_group": lambda: fcntl.ioctl(0, _SIOCSPGRP, struct.pack("i", parent)),
        "limits": lambda: _call("prlimit", parent, 7, None, ctypes.create_string_buffer(16)),
        "ptrace": lambda: _call("ptrace", _PTRACE_ATTACH, parent, None, None),
        "vm": lambda: _call("syscall", _PROCESS_VM_READV, parent, None, 0, None, 0, 0),
        "thread": _threaded,
        "flags": lambda: fcntl.fcntl(0, fcntl.F_GETFL),
        "own_signal": lambda: signal.raise_signal(signal.SIGCHLD),
    }
    return {"found": {name: _tried(attempt) for name, attempt in attempts.items()}}


def _tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except RuntimeError as error:
        return str(error)
    return "done"


def _call(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def _forked() -> None:
    if os.fork() == 0:
        os._exit(0)


def _threaded() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


if __name__ == "__main__":
    member._KINDS["probe"] = probe
    member.serve = partial(member.serve, is_parent=sys.argv[-1] == "parent")
    member.main()
