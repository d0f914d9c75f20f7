"""The default size of delivery's window follows from the memory limit of the process's control group."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.system.memory_limit import LARGEST_WINDOW, MIB, SMALLEST_WINDOW, memory_limit_bytes, window_bytes

GIB = 1024 * MIB
UNIFIED, MIXED = "0::/a/b\n", "4:cpu,cpuacct:/a\n2:memory:/a/b\n0::/a\n"


def system(root: Path, groups: str, limits: dict[str, str]) -> Path:
    """Write these files below a root."""
    for name, content in {"proc/self/cgroup": groups, **limits}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "limit"),
    [
        (UNIFIED, {"sys/fs/cgroup/a/b/memory.max": f"{GIB}\n"}, GIB),
        (UNIFIED, {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": f"{GIB}\n"}, GIB),
        (UNIFIED, {"sys/fs/cgroup/memory.max": f"{GIB}\n"}, GIB),  # in a container, the process's own group is the root
        (MIXED, {"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (MIXED, {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (MIXED, {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        (UNIFIED, {"sys/fs/cgroup/a/b/memory.max": "max\n"}, None),
        ("", {}, None),
        ("nonsense\n::\n", {}, None),
    ],
)
def test_the_smallest_cgroup_limit_counts_or_else_the_memory_of_the_machine(
    groups: str, limits: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    found = memory_limit_bytes(system(tmp_path, groups, limits))
    assert found == (limit or memory_limit_bytes(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("limit", "reserved", "window"),
    [
        (GIB, 0, 192 * MIB),
        (512 * MIB, 0, 64 * MIB),
        (128 * MIB, 0, SMALLEST_WINDOW),
        (2 * GIB, 0, LARGEST_WINDOW),
        (1664 * MIB, 1152 * MIB, 64 * MIB),
    ],
)
def test_a_window_takes_a_quarter_of_the_free_memory(limit: int, reserved: int, window: int, tmp_path: Path) -> None:
    root = system(tmp_path, UNIFIED, {"sys/fs/cgroup/memory.max": str(limit)})
    assert window_bytes(None, reserved=reserved, root=root) == window
    assert window_bytes(7, reserved=reserved, root=root) == 7
