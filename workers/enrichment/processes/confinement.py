"""Confines a process that parses untrusted bytes, so that it may only compute and answer on its pipes.

A page that exploits a bug in its parser would run code as the worker's user. Three fences prevent harm, as far as the
kernel has them:

    seccomp     refuses sockets, new programs and processes, signals to other processes and access to their memory.
                If no folder is named, also refuses to open files. Confines all threads. See seccomp(2).
    Landlock    refuses to open, make, change or remove files, except to read in the named folders. Refuses TCP ports.
                Confines this thread and the threads that it starts. See landlock(7).
    capset      drops all capabilities, even if the process runs as root. See capabilities(7).

All three fences apply to root, too, and cannot be removed. They also protect the files `/proc/PID/mem` and
`/proc/PID/environ`, and Landlock refuses ptrace(2) of processes outside of the fence.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import stat
import struct
import sys
from collections.abc import Iterable
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from workers.system.secrecy import PR_SET_NO_NEW_PRIVS, prctl


class Fence(StrEnum):
    """A kernel mechanism that confines a process."""

    SECCOMP = "seccomp"
    LANDLOCK = "landlock"


class SystemCalls(NamedTuple):
    """An architecture's id for seccomp, and the numbers of its system calls."""

    audit: int
    refused: tuple[int, ...]
    """Calls for sockets and other processes, and calls that evade a filter."""
    executing: tuple[int, ...]
    """Calls that replace this process's program by another one."""
    opening: tuple[int, ...]
    seccomp: int
    clone: int
    clone3: int
    to_own_process: tuple[int, ...]
    """Calls that are allowed only if their first argument is the process itself: tgkill and prlimit64."""
    by_command: tuple[tuple[int, tuple[int, ...]], ...]
    """Pairs of a call and the commands that the call may not have as its second argument."""


# Names in the order of the numbers, from <asm/unistd_64.h> and <asm-generic/unistd.h>:
# socket socketpair connect bind | fork vfork | ptrace process_vm_readv process_vm_writev pidfd_open
# pidfd_getfd pidfd_send_signal kill tkill rt_sigqueueinfo rt_tgsigqueueinfo | io_uring_setup bpf perf_event_open
# userfaultfd keyctl add_key request_key unshare setns mount open_tree fsopen move_mount
# The same numbers on every architecture: pidfd_*, io_uring, mounts
_GENERIC: Final = (434, 438, 424, 425, 428, 430, 429)
_FCNTL_OWNERS: Final = (8, 15)
"""F_SETOWN F_SETOWN_EX: name a process that gets a signal, even SIGKILL, when bytes come to a file. See fcntl(2)."""
_IOCTL_OWNERS: Final = (0x8901, 0x8902)
"""FIOSETOWN SIOCSPGRP: name such a process for a socket; some event loops make a child's standard input a socket."""
ARCHITECTURES: Final = {
    "x86_64": SystemCalls(
        audit=0xC000003E,
        refused=(
            *(41, 53, 42, 49),
            *(57, 58),
            *(101, 310, 311, 62, 200, 129, 297),
            *(321, 298, 323, 250, 248, 249, 272, 308, 165),
            *_GENERIC,
        ),
        executing=(59, 322),  # execve execveat
        opening=(2, 257, 437, 85, 304),  # open openat openat2 creat open_by_handle_at
        seccomp=317,
        clone=56,
        clone3=435,
        to_own_process=(234, 302),
        by_command=((72, _FCNTL_OWNERS), (16, _IOCTL_OWNERS)),
    ),
    "aarch64": SystemCalls(
        audit=0xC00000B7,
        refused=(
            *(198, 199, 203, 200),
            *(117, 270, 271, 129, 130, 138, 240),
            *(280, 241, 282, 219, 217, 218, 97, 268, 40),
            *_GENERIC,
        ),
        executing=(221, 281),
        opening=(56, 437, 265),  # openat openat2 open_by_handle_at
        seccomp=277,
        clone=220,
        clone3=435,
        to_own_process=(131, 261),
        by_command=((25, _FCNTL_OWNERS), (29, _IOCTL_OWNERS)),
    ),
}
_X32: Final = 0x40000000
"""First number of x86-64's x32 calls, which could evade a filter that compares numbers."""
_CLONE_THREAD: Final = 0x00010000

_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_INSTRUCTION_BYTES: Final = 8
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_JMP|{BPF_JEQ,BPF_JGE,BPF_JSET}|BPF_K, BPF_RET|BPF_K."""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in struct seccomp_data."""
_EPERM, _EACCES, _ENOSYS = 1, 13, 38

_PR_SET_PDEATHSIG: Final = 1

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Landlock's calls, the same on every architecture."""
_VERSION_ASKED: Final = 1
_PATH_BENEATH: Final = 1
_FILE_RIGHTS_BY_ABI: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK_RIGHTS: Final = 0b11
"""TCP bind and connect, from version 4 of Landlock's ABI."""
_SOCKET_SCOPE, _SIGNAL_SCOPE = 0b01, 0b10
"""Abstract sockets and signals, from version 6 of Landlock's ABI."""
_READING: Final = 0b1101
"""EXECUTE, READ_FILE, READ_DIR."""
_READING_FILE: Final = 0b101
"""EXECUTE, READ_FILE. The kernel refuses a rule that gives READ_DIR, a right on folders, to a file."""
_CAPABILITY_VERSION_3: Final = 0x20080522


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine(
    readable: Iterable[str] | None = None, *, may_execute: bool = False, is_parent: bool = False
) -> list[Fence]:
    """Confine this process permanently with every fence that the kernel has, and return the missing fences.

    `readable` names files, and folders with files, that may still be read; if it is None, no file can be opened. Before
    the process calls `confine`, it must import all modules that it will need. The process can still start threads, but
    no processes. If `may_execute` is true, the process can replace itself by one of the readable programs, which stays
    confined. If `is_parent` is true, only seccomp refuses signals: Landlock would also drop the signal that ends this
    process's child, see `end_with`.
    """
    if sys.platform != "linux":
        return list(Fence)
    with contextlib.suppress(OSError):
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    missing = []
    for fence, put_up in (
        (Fence.LANDLOCK, partial(_landlock, tuple(readable or ()), is_parent)),
        (Fence.SECCOMP, partial(_seccomp, readable is None, may_execute)),
    ):
        try:
            put_up()
        except (OSError, LookupError):
            missing.append(fence)
    _drop_capabilities()
    return missing


def end_with(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).

    The kernel also kills a program that replaces this process, but no program that this process starts. If the process
    `parent` calls `confine`, `parent` must set `is_parent`. If `parent` has ended already, this process ends now. Only
    Linux has such a signal.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: object) -> int:
    """Make a system call by syscall(2), and return its result. Raises OSError."""
    found = _libc().syscall(ctypes.c_long(number), *arguments)
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(found)


def _landlock(readable: Iterable[str], may_signal: bool) -> None:
    """Apply Landlock. Raises OSError if the kernel lacks it."""
    version = system_call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_ASKED))
    files = _FILE_RIGHTS_BY_ABI[max(abi for abi in _FILE_RIGHTS_BY_ABI if abi <= version)]
    scopes = _SOCKET_SCOPE if may_signal else _SOCKET_SCOPE | _SIGNAL_SCOPE
    rights = [files, _NETWORK_RIGHTS, scopes][: 1 + (version >= 4) + (version >= 6)]
    attributes = struct.pack(f"={len(rights)}Q", *rights)
    ruleset = system_call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for folder in readable:
            _allow_reading(ruleset, folder)
        system_call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(opened).st_mode)
        rule = struct.pack("=Qi", _READING if is_folder else _READING_FILE, opened)
        system_call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(opened)


def _seccomp(no_files: bool, may_execute: bool) -> None:
    """Apply seccomp. Raises OSError if the kernel lacks it, and LookupError for an architecture not listed here."""
    calls = ARCHITECTURES[platform.machine()]
    program = filter_program(calls, no_files, may_execute)
    filled = _Program(len(program) // _INSTRUCTION_BYTES, program)
    flags = ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_ALL_THREADS)
    if system_call(calls.seccomp, *flags, ctypes.byref(filled)) != 0:
        raise OSError("seccomp: a thread has a filter of its own")


def filter_program(calls: SystemCalls, no_files: bool, may_execute: bool = False) -> bytes:
    """Build a classic BPF program over struct seccomp_data, 8 bytes per instruction."""
    # A step has a code, the number of instructions to skip if true and if false, and an operand.
    steps: list[tuple[int, int, int, int]] = []

    def returning(verdict: int) -> tuple[int, int, int, int]:
        return (_RETURN, 0, 0, verdict)

    steps += [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, calls.audit), returning(_KILL_PROCESS)]
    steps += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), returning(_ERRNO | _EPERM)]
    for number in (*calls.refused, *(() if may_execute else calls.executing)):
        steps += [(_EQUAL, 0, 1, number), returning(_ERRNO | _EPERM)]
    for number in calls.opening if no_files else ():
        steps += [(_EQUAL, 0, 1, number), returning(_ERRNO | _EACCES)]
    # clone3's flags lie in memory, which a filter cannot read. ENOSYS makes glibc fall back to clone.
    steps += [(_EQUAL, 0, 1, calls.clone3), returning(_ERRNO | _ENOSYS)]
    steps += [(_EQUAL, 0, 4, calls.clone), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_HAS_BIT, 0, 1, _CLONE_THREAD)]
    steps += [returning(_ALLOW), returning(_ERRNO | _EPERM)]
    for number in calls.to_own_process:
        # A first argument of 0 is allowed: prlimit64 takes 0 for the process itself, and tgkill finds no process 0.
        steps += [(_EQUAL, 0, 5, number), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, 0)]
        steps += [(_EQUAL, 0, 1, os.getpid()), returning(_ALLOW), returning(_ERRNO | _EPERM)]
    for number, commands in calls.by_command:
        steps += [(_EQUAL, 0, 2 + 2 * len(commands), number), (_LOAD, 0, 0, _SECOND_ARGUMENT)]
        for command in commands:
            steps += [(_EQUAL, 0, 1, command), returning(_ERRNO | _EPERM)]
        steps += [returning(_ALLOW)]
    steps += [returning(_ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _drop_capabilities() -> None:
    """Drop all capabilities by capset(2); a process without capabilities stays unchanged."""
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    with contextlib.suppress(OSError, AttributeError):
        if _libc().capset(header, none) != 0:
            raise OSError(ctypes.get_errno(), "capset")
