"""The memory limit of this process, and the size of a stage's window within it.

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
"""Memory besides the window: some 100 MiB of the process itself, and the Kafka client's prefetched records."""
COPIES: Final = 4
"""The bytes of memory that a process needs for each byte of its window.

They are for taken records, records that are not due (a quarter), the client's outgoing queue, and a reserve. In a
measurement, results of 900 kB waited for an endpoint that was down: a process with a window of 256 MiB then took 714 to
844 MiB.
"""


def window_bytes(configured: int | None, *, reserved: int = 0, root: Path = Path("/")) -> int:
    """Return the window in bytes: the configured size, else a share of the memory limit, from 16 to 256 MiB.

    `reserved` bytes of the limit belong to other processes.
    """
    if configured is not None:
        return configured
    free = memory_limit_bytes(root) - reserved - BESIDE_WINDOW
    return max(SMALLEST_WINDOW, min(LARGEST_WINDOW, free // COPIES))


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Return the smallest of the machine's memory and the limits of this process's control groups."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Yield the readable limits of the process's own control group and of all its parent groups.

    In a container, the process's own group is usually the root of the mount, although the kernel names another path.
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
    """Yield the limit in this file, or nothing if the file is missing or contains no limit (`max`)."""
    try:
        said = file.read_text().strip()
    except OSError:
        return
    if said.isdecimal():
        yield int(said)
