"""Confines a process that parses untrusted bytes, so that it may only compute and answer on its pipes.

A page that exploits a bug in its parser would run code as the worker's user. Three fences prevent harm, as far as the
kernel has them:

    seccomp     allows the listed calls and refuses all others: a parser computes, asks for memory, starts threads, and
                reads and writes what is open. If folders are named, files may be opened for reading, too. Confines all
                threads. See seccomp(2).
    Landlock    refuses to open, make, change or remove files, except to read in the named folders. Refuses TCP ports.
                Confines this thread and the threads that it starts. See landlock(7).
    capset      drops all capabilities, even if the process runs as root: those of this thread and of the threads that
                it starts. See capabilities(7).

All three fences apply to root, too, and cannot be removed. They also protect the files `/proc/PID/mem` and
`/proc/PID/environ`, and Landlock refuses ptrace(2) of processes outside of the fence.

The lists come from traces of all readers over public pages, hostile pages, PDFs, Office files and scans. A new libc may
make other calls: these fail, as they do on an old kernel, and the kernel's audit log names their numbers.
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
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

from workers.system.secrecy import PR_SET_NO_NEW_PRIVS, prctl


class Fence(StrEnum):
    """A kernel mechanism that confines a process."""

    SECCOMP = "seccomp"
    LANDLOCK = "landlock"


class Architecture(NamedTuple):
    """An architecture's id for seccomp, and the column of its numbers in the tables of calls."""

    audit: int
    column: int


ARCHITECTURES: Final = {"x86_64": Architecture(0xC000003E, 0), "aarch64": Architecture(0xC00000B7, 1)}

_Numbers = Mapping[str, tuple[int, int | None]]
"""Maps calls to their numbers on x86-64 and on aarch64, which lacks some old calls. See <asm/unistd.h>."""

_COMPUTING: Final[_Numbers] = {
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "brk": (12, 214),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    "wait4": (61, 260),
    "setitimer": (38, 103),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "restart_syscall": (219, 128),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_READING_FILES: Final[_Numbers] = {
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "fadvise64": (221, 223),
}
_EXECUTING: Final[_Numbers] = {"execve": (59, 221), "arch_prctl": (158, None), "set_tid_address": (218, 96)}
"""Calls that replace this process by another program, and that the program's loader makes."""

_ON_ITSELF: Final = ((234, 131), (302, 261))
"""tgkill(2) and prlimit64(2): calls that are allowed only if their first argument is this process, or 0."""
_CLONE: Final = (56, 220)
_CLONE_THREAD: Final = 0x00010000
_OPEN: Final = (((2, None), 1), ((257, 56), 2))
"""open(2) and openat(2), and the position of their flags."""
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
"""Flags by which a file is made or changed, the same on both architectures."""

_BY_ARGUMENT: Final = (
    # F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC; F_SETOWN would name a process that gets signals. See fcntl(2).
    ((72, 25), 1, (1, 2, 3, 4, 1030)),
    # PR_SET_NAME PR_SET_VMA: names of threads and of memory
    ((157, 167), 0, (15, 0x53564D41)),
)
"""Calls that are allowed only if this argument, counted from 0, has one of these values."""
_TERMINAL: Final = ((16, 29), 1, (0x5401,))
"""ioctl(2) with TCGETS, by which libraries ask whether an opened file is a terminal."""

_SECCOMP: Final = (317, 277)
_NEW_CALLS: Final = 424
"""First number of the calls since Linux 5.1, the same on every architecture.

A libc tries such a call first, for example clone3, and falls back to an older one only after ENOSYS.
"""
_X32: Final = 0x40000000
"""First number of x86-64's x32 calls, which could evade a filter that compares numbers."""

_SET_MODE_FILTER: Final = 1
_ALL_THREADS, _LOGGED = 1, 2
_INSTRUCTION_BYTES: Final = 8
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_JMP|{BPF_JEQ,BPF_JGE,BPF_JSET}|BPF_K, BPF_RET|BPF_K."""
_NUMBER, _ARCHITECTURE, _ARGUMENTS, _ARGUMENT_BYTES = 0, 4, 16, 8
"""Offsets in struct seccomp_data."""
_EPERM, _ENOSYS = 1, 38
_REFUSED: Final = _ERRNO | _EPERM

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
    the process calls `confine`, it must import all modules that it will need, and must not have started a thread: see
    `confine_files`. The process can still start threads, but no processes. If `may_execute` is true, the process can
    replace itself by one of the readable programs, which stays confined. If `is_parent` is true, only seccomp refuses
    signals: Landlock would also drop the signal that ends this process's child, see `end_with`.
    """
    missing = confine_files(readable or (), is_parent=is_parent)
    return missing + confine_calls(reads_files=readable is not None, may_execute=may_execute)


def confine_files(readable: Iterable[str], *, is_parent: bool = False) -> list[Fence]:
    """Let this thread, and those that it starts, only read the named files, without capabilities; see `confine`.

    Must be called before libraries start threads of their own, which would stay free.
    """
    if sys.platform != "linux":
        return [Fence.LANDLOCK]
    with contextlib.suppress(OSError):
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    return _missing(Fence.LANDLOCK, partial(_landlock, tuple(readable), is_parent))


def confine_calls(*, reads_files: bool, may_execute: bool = False) -> list[Fence]:
    """Let all threads of this process make only the listed calls; see `confine`, and call `confine_files` first."""
    if sys.platform != "linux":
        return [Fence.SECCOMP]
    return _missing(Fence.SECCOMP, partial(_seccomp, reads_files, may_execute))


def _missing(fence: Fence, put_up: Callable[[], None]) -> list[Fence]:
    try:
        put_up()
    except (OSError, LookupError):
        return [fence]
    return []


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


def _seccomp(reads_files: bool, may_execute: bool) -> None:
    """Apply seccomp. Raises OSError if the kernel lacks it, and LookupError for an architecture not listed here."""
    architecture = ARCHITECTURES[platform.machine()]
    program = filter_program(architecture, reads_files=reads_files, may_execute=may_execute)
    filled = _Program(len(program) // _INSTRUCTION_BYTES, program)
    flags = ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_ALL_THREADS | _LOGGED)
    if system_call(_SECCOMP[architecture.column], *flags, ctypes.byref(filled)) != 0:
        raise OSError("seccomp: a thread has a filter of its own")


_Step = tuple[int, int, int, int]
"""A code, the number of instructions to skip if true and if false, and an operand."""


def filter_program(
    architecture: Architecture, *, reads_files: bool = False, may_execute: bool = False, otherwise: int = _REFUSED
) -> bytes:
    """Build a classic BPF program over struct seccomp_data, 8 bytes per instruction.

    `otherwise` is the verdict on calls that are not listed, and are older than Linux 5.1.
    """
    column = architecture.column
    verdicts = dict.fromkeys(_COMPUTING.values(), _ALLOW)
    # A library that looks for its configuration must find that it cannot, whatever `otherwise` is.
    verdicts |= dict.fromkeys(_READING_FILES.values(), _ALLOW if reads_files else _REFUSED)
    verdicts |= dict.fromkeys(_EXECUTING.values(), _ALLOW) if may_execute else {}
    verdicts |= {} if reads_files else {numbers: _REFUSED for numbers, _ in _OPEN}
    conditions = [
        *((numbers[column], 0, (0, os.getpid())) for numbers in _ON_ITSELF),
        *((numbers[column], argument, values) for numbers, argument, values in _BY_ARGUMENT),
        *((numbers[column], argument, values) for numbers, argument, values in (_TERMINAL,) if reads_files),
    ]
    steps: list[_Step] = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture.audit), _returning(_KILL_PROCESS)]
    steps += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), _returning(_REFUSED)]
    for numbers, verdict in verdicts.items():
        if (number := numbers[column]) is not None:
            steps += [(_EQUAL, 0, 1, number), _returning(verdict)]
    steps += [(_EQUAL, 0, 4, _CLONE[column]), _loading(0), (_HAS_BIT, 0, 1, _CLONE_THREAD)]
    steps += [_returning(_ALLOW), _returning(otherwise)]
    for numbers, flags in _OPEN:
        if reads_files and (number := numbers[column]) is not None:
            steps += [(_EQUAL, 0, 4, number), _loading(flags), (_HAS_BIT, 0, 1, _WRITING)]
            steps += [_returning(_REFUSED), _returning(_ALLOW)]
    for number, argument, values in conditions:
        steps += [(_EQUAL, 0, 2 + 2 * len(values), number), _loading(argument)]
        for value in values:
            steps += [(_EQUAL, 0, 1, value), _returning(_ALLOW)]
        steps += [_returning(otherwise)]
    steps += [(_AT_LEAST, 0, 1, _NEW_CALLS), _returning(_ERRNO | _ENOSYS), _returning(otherwise)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _returning(verdict: int) -> _Step:
    return (_RETURN, 0, 0, verdict)


def _loading(argument: int) -> _Step:
    """Load the low half of an argument; the kernel reads no more of an int."""
    return (_LOAD, 0, 0, _ARGUMENTS + argument * _ARGUMENT_BYTES)


def _drop_capabilities() -> None:
    """Drop all capabilities by capset(2); a process without capabilities stays unchanged."""
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    with contextlib.suppress(OSError, AttributeError):
        if _libc().capset(header, none) != 0:
            raise OSError(ctypes.get_errno(), "capset")
