"""The screen of `postback top`. Names from Kafka are untrusted: they are escaped, cut, and never read as markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.shared.terminal import harmless

if TYPE_CHECKING:
    from cli.operations.top import Frame

_ROWS = 20
_WIDEST = 60
_PER_SECOND = 60


def view(frame: Frame, metrics: Mapping[str, str]) -> RenderableType:
    """Return the screen. `metrics` has a line of text for each role whose metrics were asked for."""
    parts: list[RenderableType] = [_head(frame), _lanes(frame.figures), _workers(frame), _events(frame)]
    for name, line in metrics.items():
        parts.append(_text(f"{name}  {line}"))
    return Group(*parts)


def _head(frame: Frame) -> Text:
    figures, settled = frame.figures, sum(count for (what, _), count in frame.recent.items() if what == "settled")
    return _text(
        f"{figures['jobs']} jobs and {figures['callbacks']} callbacks wait; {settled / _PER_SECOND:.1f} jobs/s; "
        f"{len(frame.workers)} workers; {figures['dead_letters']} dead letters; "
        f"{figures['disabled_endpoints']} endpoints disabled"
    )


def _lanes(figures: dict[str, Any]) -> Table:
    table = _table("lane", "waiting", "oldest", "deadline in", "workers", "wanted")
    for each in figures["lanes"][:_ROWS]:
        deadline = each["tightest_deadline_seconds"]
        table.add_row(
            _text(each["lane"] or "(shared)"),
            str(each["jobs"]),
            f"{each['oldest_job_seconds']:.0f} s",
            "-" if deadline is None else f"{deadline:.0f} s",
            str(each["workers"]),
            str(each["wanted_replicas"]),
        )
    return table


def _workers(frame: Frame) -> Table:
    table = _table("worker", "lane", "version", "models")
    for each in frame.workers[:_ROWS]:
        table.add_row(
            *(_text(each.replica), _text(each.lane or "(shared)"), _text(each.version or "-")),
            _text(", ".join(each.models)),
        )
    if len(frame.workers) > _ROWS:
        table.add_row(f"and {len(frame.workers) - _ROWS} more")
    return table


def _events(frame: Frame) -> Table:
    table = _table("last minute", "outcome or reason", "count")
    for (what, name), count in frame.recent.most_common(_ROWS):
        table.add_row(_text(what.replace("_", " ")), _text(name), str(count))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _text(text: str) -> Text:
    return Text(harmless(text if len(text) <= _WIDEST * 3 else f"{text[: _WIDEST * 3]}…"))
