"""Checks the limits of this machine: open files, memory, and space on the disks that processes write to."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from operators.doctor.findings import Finding, fault, warning
from workers.system.memory_limit import BESIDE_WINDOW, COPIES, MIB, SMALLEST_WINDOW, memory_limit_bytes

LEAST_FILES = 4096
"""A lower hard limit of open files is a fault, since each callback in flight and each idle connection uses a file."""
LEAST_MEMORY = BESIDE_WINDOW + COPIES * SMALLEST_WINDOW
FAULT_DISK = 256 * MIB
WARN_DISK = 2 * 1024 * MIB


def check_files_limit() -> Iterator[Finding]:
    """Yield a fault if the hard limit of open files is too low. Roles raise the soft limit to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        yield fault(
            f"a process here may open {hard} files, and {LEAST_FILES} are needed",
            "raise the hard limit: `ulimit -Hn 65536` as root, LimitNOFILE=65536 in systemd",
        )


def check_memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield a fault if the memory limit leaves no room for delivery's smallest window."""
    limit = memory_limit_bytes(root)
    if limit < LEAST_MEMORY:
        yield fault(
            f"the memory limit is {limit // MIB} MiB, and a process needs {LEAST_MEMORY // MIB} MiB",
            "raise the container's memory limit, as `resources.limits.memory` in the chart",
        )


def check_disk(
    folders: Mapping[str, Path], free_of: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
) -> Iterator[Finding]:
    """Yield a fault or a warning for each disk with little space. `folders` maps a setting to its folder.

    For a missing folder, the disk of its nearest existing parent is checked.
    """
    for name, folder in folders.items():
        there = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
        free = free_of(there)
        if free < WARN_DISK:
            weigh = fault if free < FAULT_DISK else warning
            yield weigh(f"the disk of {name} has {free // MIB} MiB free", f"free space at {there}, or move {name}")
