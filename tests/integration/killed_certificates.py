"""Kills itself before one file operation of `postback certs`; run as `python -m tests.integration.killed_certificates`.

Each operation runs in forked processes on copies of a directory: the first is killed before its first file operation,
the second before its second, until one runs to its end. The copies stay for the test to look at.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cli.operations.certificates import Leaf, init, issue, renew, revoke

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
OPERATIONS: dict[str, Callable[[Path], object]] = {
    "init": lambda ca: init(ca, NOW),
    "issue": lambda ca: issue(ca, Leaf.server("new", ("localhost",)), NOW),
    "renew": lambda ca: renew(ca, "old", NOW),
    "revoke": lambda ca: revoke(ca, "old", NOW),
}
_CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.chmod", "shutil.rmtree")
"""Python's audit events before a file is opened, made, renamed or removed."""
_MOST = 100


def _die_before(count: int) -> None:
    """Kill this process before its file operation of this number, from 0."""
    left = [count]

    def count_down(event: str, _arguments: tuple[object, ...]) -> None:
        if event in _CHANGES:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(count_down)


def _runs_to_its_end(operation: Callable[[Path], object], ca: Path, count: int) -> bool:
    pid = os.fork()
    if pid == 0:
        _die_before(count)
        operation(ca)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the operation failed"
    return not os.WIFSIGNALED(status)


def main(template: Path, folder: Path) -> None:
    """Write one directory for each operation and each kill, and print the number of kills of each operation."""
    kills = {}
    for name, operation in OPERATIONS.items():
        for count in range(_MOST):
            ca = folder / f"{name}-{count}"
            if name != "init":
                shutil.copytree(template, ca)
            if _runs_to_its_end(operation, ca, count):
                kills[name] = count
                break
    sys.stdout.write(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
