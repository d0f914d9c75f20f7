"""Draws dashboards from a Prometheus as pictures: `python -m scripts.dashboards.pictures PICTURES --prometheus URL`.

A dashboard is a file that `scripts.dashboards` writes. A picture shows its panels in their places, with the answers
that Grafana gets.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import requests
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from telemetry.clock import SystemClock

_DASHBOARDS = Path(__file__).parents[2] / "helm" / "postback" / "files" / "dashboards"

_POINTS = 240
"""Number of points of a line. If there were more, several would share one pixel."""
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_SUFFIX: Final = "suffix: "
_SECONDS: Final = (
    (604_800, "week"),
    (86_400, "day"),
    (3_600, "hour"),
    (60, "min"),
    (1, "s"),
    (1e-3, "ms"),
    (1e-6, "µs"),
)
_SHORT: Final = ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1, ""))
_COLUMNS = 24
_COLUMN_INCHES, _ROW_INCHES, _DOTS = 0.7, 0.42, 80
_TOP_INCHES = 0.5
_TICKS = (60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)
"""Seconds between two times on an axis."""
_LEGEND_LINES, _LEGEND_CHARS = 5, 88
"""The maximum number of lines in a legend, and of characters in a line.

In Grafana, a reader scrolls to further series.
"""


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL with Grafana's variables, and the pattern of its legend: `{{label}}` stands for the label's value."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Place:
    """A panel's place in Grafana's grid of 24 columns; `y` grows downwards."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph."""

    title: str
    unit: str
    """An id of Grafana's units."""
    queries: tuple[Query, ...]
    place: Place
    low: float | None
    """Lowest number on the axis; None if the axis follows the values."""
    high: float | None
    """Highest number on the axis; None if the axis follows the values."""
    thresholds: tuple[float, ...]
    is_sorted: bool
    """True if the legend begins with the series of the highest values."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file. `name` is the file's name without `.json`."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def read_dashboard(file: Path) -> Dashboard:
    """Read a dashboard. Raises ValueError if a panel is not a graph over time, which the picture cannot show."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return Dashboard(file.stem, found["title"], tuple(_panel(each) for each in found["panels"]))


def _panel(found: dict[str, Any]) -> Panel:
    if found["type"] != "timeseries":
        raise ValueError(
            f"The panel {found['title']!r} is a {found['type']}; only panels of type timeseries are drawn."
        )
    defaults, grid = found["fieldConfig"]["defaults"], found["gridPos"]
    custom = defaults.get("custom", {})
    is_shown = custom.get("thresholdsStyle", {}).get("mode", "off") != "off"
    steps = defaults.get("thresholds", {}).get("steps", []) if is_shown else []
    return Panel(
        title=found["title"],
        unit=defaults.get("unit", "short"),
        queries=tuple(Query(each["expr"], each["legendFormat"]) for each in found["targets"]),
        place=Place(grid["x"], grid["y"], grid["w"], grid["h"]),
        low=defaults.get("min"),
        high=defaults.get("max"),
        thresholds=tuple(step["value"] for step in steps if step["value"] is not None),
        is_sorted=found["options"]["legend"].get("sortBy") == "Max",
    )


# -- the queries' answers, asked as Grafana asks ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Period:
    """The time that a picture shows. `scrape_seconds` is the scrape interval of Grafana's data source."""

    end: float
    """Unix seconds."""
    seconds: float
    scrape_seconds: float = 15.0

    @property
    def step(self) -> float:
        """The seconds between two points of a line."""
        return max(1.0, round(self.seconds / _POINTS))

    @property
    def rate_interval(self) -> str:
        """Grafana's value of `$__rate_interval`: at least four scrapes."""
        return f"{max(self.step + self.scrape_seconds, 4 * self.scrape_seconds):.0f}s"


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `values` has one number for each of `times`, which are Unix seconds; NaN is a gap."""

    legend: str
    times: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def is_empty(self) -> bool:
        """True if the line has no number to show."""
        return not any(math.isfinite(value) for value in self.values)

    def highest(self) -> float:
        """Return the highest number; minus infinity without one."""
        return max((value for value in self.values if math.isfinite(value)), default=-math.inf)


def panel_series(prometheus: str, panel: Panel, period: Period) -> list[Series]:
    """Return the lines of a panel. Raises requests.RequestException, also if Prometheus refuses a query."""
    return [one for query in panel.queries for one in _answer(prometheus, query, period) if not one.is_empty]


def legend_of(pattern: str, labels: dict[str, str]) -> str:
    """Return the legend of a series; Grafana shows `Value` if nothing is left of the pattern."""
    return _LABEL.sub(lambda found: labels.get(found[1], ""), pattern) or "Value"


def _answer(prometheus: str, query: Query, period: Period) -> list[Series]:
    expression = query.expression.replace("$__rate_interval", period.rate_interval)
    times = [period.end - period.seconds + number * period.step for number in range(int(period.seconds / period.step))]
    asked: dict[str, str | float] = {"query": expression, "start": times[0], "end": times[-1], "step": period.step}
    answer = requests.get(f"{prometheus}/api/v1/query_range", params=asked, timeout=60)
    answer.raise_for_status()
    return [
        line_of(legend_of(query.legend, found["metric"]), times, found["values"])
        for found in answer.json()["data"]["result"]
    ]


def line_of(legend: str, times: list[float], pairs: list[tuple[float, str]]) -> Series:
    """Return a line from Prometheus's pairs of time and value. A time without a value is a gap, as Grafana shows it."""
    values = {round(moment, 1): float(value) for moment, value in pairs}
    return Series(legend, tuple(times), tuple(values.get(round(moment, 1), math.nan) for moment in times))


# -- numbers as Grafana writes them on an axis -----------------------------------------------------------------------


def written(value: float, unit: str) -> str:
    """Return a number with its unit. Raises KeyError for a unit that no dashboard has."""
    if unit.startswith(_SUFFIX):
        return f"{_short(value)} {unit.removeprefix(_SUFFIX)}"
    return _UNITS[unit](value)


def _scaled(value: float, steps: tuple[tuple[float, str], ...], space: str) -> str:
    size = abs(value)
    factor, name = next((step for step in steps if size >= step[0] * (1 - 1e-9)), steps[-1])
    return f"{value / factor:.4g}{space}{name}"


def _seconds(value: float) -> str:
    return _scaled(value, _SECONDS, " ") if value else "0 s"


def _short(value: float) -> str:
    return _scaled(value, _SHORT, "")


_UNITS: Final[dict[str, Callable[[float], str]]] = {
    "short": _short,
    "s": _seconds,
    "ops": lambda value: f"{_short(value)} ops/s",
    "reqps": lambda value: f"{_short(value)} req/s",
    "percent": lambda value: f"{value:.4g}%",
    "percentunit": lambda value: f"{100 * value:.4g}%",
}


# -- pictures --------------------------------------------------------------------------------------------------------


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


# -- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one PNG for each dashboard, and print the panels without data."""
    chosen = _parser().parse_args(arguments)
    end = chosen.until.timestamp() if chosen.until else SystemClock().time()
    period = Period(end, 60 * chosen.minutes, chosen.scrape_seconds)
    chosen.pictures.mkdir(parents=True, exist_ok=True)
    for file in sorted(chosen.dashboards.glob("*.json")):
        dashboard = read_dashboard(file)
        try:
            series = {panel: panel_series(chosen.prometheus, panel, period) for panel in dashboard.panels}
        except requests.RequestException as error:
            sys.exit(
                f"{chosen.prometheus} did not answer as a Prometheus ({type(error).__name__}); correct --prometheus."
            )
        picture = chosen.pictures / f"{dashboard.name}.png"
        draw(dashboard, series, period, picture)
        sys.stdout.write(f"{picture}\n")
        for panel, lines in series.items():
            if not lines:
                sys.stdout.write(f"  no data: {panel.title}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.dashboards.pictures", description=main.__doc__)
    parser.add_argument("pictures", type=Path, help="the folder to write the pictures to")
    parser.add_argument(
        "--prometheus", default="http://localhost:9090", help="Prometheus's address (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="length of the pictures' time span in minutes (default: %(default)s)",
    )
    parser.add_argument(
        "--until", type=datetime.fromisoformat, help="end of the pictures' time span, as ISO 8601 (default: now)"
    )
    parser.add_argument(
        "--scrape-seconds", type=float, default=15.0, help="Prometheus's scrape interval (default: %(default)s)"
    )
    parser.add_argument(
        "--dashboards",
        type=Path,
        default=_DASHBOARDS,
        help="the folder with the dashboards (default: the chart's)",
    )
    return parser


if __name__ == "__main__":
    main()
