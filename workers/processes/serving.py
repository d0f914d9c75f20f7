"""The loop of a model's process, which a `ModelProcess` starts. The module's arguments name the model.

The process takes tasks from standard input and answers on standard output, as `frames` describes. If the model cannot
be loaded, the first answer is `refused` with the reason; else it lists the fences that this kernel lacks (`missing`).
If the model fails at a task, the answer is `failed`.

The texts are untrusted. Before the process loads the model, it gives up all files but the model's, Python's and those
of the system's libraries: the libraries start threads while they load a model, and a fence around files holds only for
the threads that start behind it. Once the model is loaded, the process cannot open sockets either.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from workers.processes.confinement import Fence, confine_calls, confine_files
from workers.processes.frames import receive, send

Answer = Callable[[dict[str, Any], bytes], dict[str, Any]]
"""A function that answers a task, which is a head and a body."""

_MOST_REASON_CHARS: Final = 200
_LOOKED_UP: Final = ("/dev/urandom", "/etc/ld.so.cache", "/sys/devices/system/cpu", "/proc/cpuinfo", "/proc/meminfo")


class Refused(Exception):  # noqa: N818 - named after the event
    """The model cannot be loaded. The text gives the reason."""


def serve_model(prepare: Callable[[], Iterable[str]], load: Callable[[], Answer], packages: str) -> None:
    """Load the model, and answer tasks until the input ends.

    `prepare` imports the libraries that need more than files while they are imported, and returns the folders of the
    model's files; `load` may read these folders. `packages` tells which packages are missing, and how to install them,
    if one of them raises ImportError.
    """
    output = _own_output()
    with contextlib.suppress(OSError):  # if memory runs out, the kernel kills this process rather than its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        folders = prepare()
        missing = _confined_to([*folders, *_readable()])
        answer = load()
    except ImportError:
        send(output, {"refused": packages})
    except Exception as error:  # the libraries raise many kinds of error for a missing or broken model
        send(output, {"refused": str(error) if isinstance(error, Refused) else reason_of(error)})
    else:
        send(output, {"missing": missing + confine_calls(reads_files=True)})
        while (request := receive(sys.stdin.buffer)) is not None:
            send(output, _answered(answer, *request))


def _confined_to(folders: list[str]) -> list[Fence]:
    """Let this process read only these folders, and return the fence if a thread is left outside of it."""
    tempfile.gettempdir()  # found now, by writing a file: libraries ask for the folder's name while they load a model
    is_alone = len([*Path("/proc/self/task").iterdir()]) == 1 if sys.platform == "linux" else True
    missing = confine_files(folders)
    return missing if is_alone else [Fence.LANDLOCK]


def _answered(answer: Answer, task: dict[str, Any], body: bytes) -> dict[str, Any]:
    try:
        return answer(task, body)
    except Exception as error:  # a failure at one text must not end the process, which serves all jobs
        return {"failed": type(error).__qualname__}


def reason_of(error: Exception) -> str:
    """Return an error's kind and first line, in a few words."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__qualname__}: {first}"[:_MOST_REASON_CHARS]


def _readable() -> list[str]:
    """List the files that libraries read late: Python's folders, and the system's files about cores and memory.

    The listed folders and files hold no secrets, unlike the rest of `/proc` and the worker's own folder.
    """
    python = [path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))]
    ours = str(Path(__file__).parents[2])
    return [*dict.fromkeys((*python, ours, "/usr/lib", "/usr/local/lib", "/lib", "/lib64", *_LOOKED_UP))]


def _own_output() -> BinaryIO:
    """Reserve standard output for answers, since text that a library prints would break the answers' framing."""
    own = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return own
