"""One picture for each dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from devkit.dashboards.model import Dashboard, Panel
from devkit.dashboards.series import Period, Series
from devkit.dashboards.units import written

_COLUMNS = 24
_COLUMN_INCHES, _ROW_INCHES, _DOTS = 0.7, 0.42, 80
_TOP_INCHES = 0.5
_TICKS = (60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)
"""Seconds between two times on an axis."""
_LEGEND_LINES, _LEGEND_CHARS = 5, 88
"""The maximum number of lines in a legend, and of characters in a line.

In Grafana, a reader scrolls to further series.
"""


def draw(dashboard: Dashboard, series: Mapping[Panel, Sequence[Series]], period: Period, file: Path) -> None:
    """Write the picture of a dashboard as a PNG. `series` has each panel's lines."""
    figure_of(dashboard, series, period).savefig(file, metadata={"Software": None})


def figure_of(dashboard: Dashboard, series: Mapping[Panel, Sequence[Series]], period: Period) -> Figure:
    """Return the picture of a dashboard, with the panels in the order of the dashboard."""
    rows = max(panel.place.y + panel.place.height for panel in dashboard.panels)
    width, height = _COLUMNS * _COLUMN_INCHES, rows * _ROW_INCHES + _TOP_INCHES
    figure = Figure(figsize=(width, height), dpi=_DOTS)
    FigureCanvasAgg(figure)
    moment = datetime.fromtimestamp(period.end, UTC)
    figure.text(0.01, 1 - 0.3 / height, f"{dashboard.title}, until {moment:%Y-%m-%d %H:%M:%S} UTC", fontsize=14)
    for panel in dashboard.panels:
        place = panel.place
        left, top = place.x / _COLUMNS, (place.y * _ROW_INCHES + _TOP_INCHES) / height
        wide, high = place.width / _COLUMNS, place.height * _ROW_INCHES / height
        axes = figure.add_axes((left + 0.2 * wide, 1 - top - 0.68 * high, 0.76 * wide, 0.56 * high))
        _graph(axes, panel, series[panel], period)
    return figure


def _graph(axes: Axes, panel: Panel, lines: Sequence[Series], period: Period) -> None:
    axes.set_title(panel.title, fontsize=10, loc="left", fontweight="bold")
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, panel.unit)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(
        MultipleLocator(next((each for each in _TICKS if each >= period.seconds / 5), _TICKS[-1]))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{datetime.fromtimestamp(at, UTC):%H:%M}"))
    axes.set_xlim(period.end - period.seconds, period.end)
    for line in sorted(lines, key=Series.highest, reverse=True) if panel.is_sorted else lines:
        axes.plot(line.times, line.values, label=line.legend, linewidth=1.2, marker=".", markersize=2)
    if not lines:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", va="center", fontsize=12)
    shown = axes.get_ylim()  # a threshold outside of this range stays invisible, as in Grafana
    for threshold in panel.thresholds:
        axes.axhline(threshold, color="red", linewidth=1, linestyle="--")
    low, high = (shown[0] if panel.low is None else panel.low), (shown[1] if panel.high is None else panel.high)
    axes.set_ylim(low, high)
    _name(axes)


def _name(axes: Axes) -> None:
    """Draw the legend below the graph."""
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    columns = max(1, min(len(names), _LEGEND_CHARS // (max(map(len, names)) + 6)))
    room = columns * _LEGEND_LINES
    axes.legend(
        handles[:room],
        names[:room],
        title=f"and {len(names) - room} more" if len(names) > room else None,
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(-0.2, -0.12),
        ncols=columns,
        labelspacing=0.2,
        handlelength=1,
    )
