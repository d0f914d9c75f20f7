"""Dead letters as a table for a terminal, with the counts of their reasons below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from console.terminal import harmless

ROWS_AT_ONCE = 500
"""A table has at most this many rows. All rows are read before the first is shown, because the widest cell sets a
column's width.
"""
MAX_SHOWN_CHARACTERS = 300
"""The largest number of characters shown of one text; `postback dead-letters show` shows the whole text."""
_TO_THE_MINUTE = len("2026-11-27T07:33")


def write_table(console: Console, summaries: Iterable[dict[str, Any]]) -> tuple[int, Counter[str]]:
    """Write the letters in tables of bounded length. Return the number of letters, in total and by reason."""
    count, reasons, left = 0, Counter[str](), iter(summaries)
    while rows := list(islice(left, ROWS_AT_ONCE)):
        console.print(_table(rows))
        count += len(rows)
        reasons.update(str(row["reason"]) for row in rows)
    return count, reasons


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("id", "given up", "kind"):
        table.add_column(title, no_wrap=True)
    table.add_column("reason", overflow="fold", ratio=1)
    table.add_column("whose", overflow="fold", ratio=1)
    for row in rows:
        cells = (row["id"], str(row["at"])[:_TO_THE_MINUTE].replace("T", " "), row["kind"], _reason(row), _whose(row))
        table.add_row(*(Text(cell) for cell in cells), style="dim" if row["redriven_at"] else None)
    return table


def _reason(row: dict[str, Any]) -> str:
    """Return the reason's code, the number of tries and the state, and on the next line the detail."""
    tries = f", {row['attempts']} tries" if row["attempts"] else ""
    held = f", held: {row['obstacle']}" if row["obstacle"] else ""
    state = ", put back" if row["redriven_at"] else held
    return f"{_shown(row['reason'])}{tries}{state}" + (f"\n{_shown(row['detail'])}" if row["detail"] else "")


def _whose(row: dict[str, Any]) -> str:
    """Return the tenant and the job, and on the next line the origin of the callback."""
    job = _shown(f"{row['tenant']}/{row['job_id'] or '-'}")
    return f"{job}\n{_shown(row['origin'])}" if row["origin"] else job


def _shown(text: str) -> str:
    return harmless(text[:MAX_SHOWN_CHARACTERS])
