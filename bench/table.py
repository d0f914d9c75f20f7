"""Prints numbers as a small table, and a target as met or missed."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path


def title(text: str) -> None:
    """Print the measurement's name, machine and time, without which its numbers mean nothing."""
    load = os.getloadavg()[0]
    print(f"\n{text}")
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {os.cpu_count()} cores · {_cpu()} · load {load:.2f} at the start")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a Markdown table."""
    texts = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    texts.insert(1, ["-" * width for width in widths])
    print()
    for row in texts:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()


def verdict(what: str, value: float, target: float, *, at_least: bool, unit: str = "") -> None:
    """Print a value, its target, and `met` or `MISSED`."""
    met = value >= target if at_least else value <= target
    sign = "≥" if at_least else "≤"
    print(f"{what}: {value:,.2f}{unit}, target {sign} {target:,g}{unit}: {'met' if met else 'MISSED'}", flush=True)


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
