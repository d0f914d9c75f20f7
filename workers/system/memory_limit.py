"""How much memory this process may have, and how large a stage's window may be in it.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html (`memory.max`) and cgroup-v1/memory.html
(`memory.limit_in_bytes`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
LARGEST_WINDOW: Final = 256 * MIB
SMALLEST_WINDOW: Final = 16 * MIB
BESIDE_WINDOW: Final = 256 * MIB
"""The process without records, some 100 MiB, and the answers of Kafka that its client has not handed over yet."""
COPIES: Final = 4
"""A window's bytes in memory at most: taken, put off until due (a quarter), in the client's outgoing queue, and spare.
With results of 900 kB for an endpoint that is down, a process with a window of 256 MiB grew to 714 to 844 MiB."""


def window_bytes(configured: int | None, *, reserved: int = 0, root: Path = Path("/")) -> int:
    """The window in bytes: what is configured, else what the limit of memory allows, from 16 to 256 MiB.

    `reserved` are bytes of the same limit that other processes may have.
    """
    if configured is not None:
        return configured
    free = memory_limit_bytes(root) - reserved - BESIDE_WINDOW
    return max(SMALLEST_WINDOW, min(LARGEST_WINDOW, free // COPIES))


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The least of the limits of this process's control groups, and of the machine's memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Those of its own group and of each group around it, as far as they can be read.

    In a container its own group is mostly the root of what is mounted, whatever the path that the kernel tells.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            places, file = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max"
        elif "memory" in controllers.split(","):
            places, file = ["sys/fs/cgroup/memory"], "memory.limit_in_bytes"
        else:
            continue
        for place in places:
            own = Path(path.lstrip("/"))
            for group in (own, *own.parents):
                yield from _limit(root / place / group / file)


def _limit(file: Path) -> Iterator[int]:
    """None where there is no such file, or no limit in it (`max`)."""
    try:
        said = file.read_text().strip()
    except OSError:
        return
    if said.isdecimal():
        yield int(said)
