"""The queries' answers from Prometheus, asked as Grafana asks."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import requests

from devkit.dashboards.model import Panel, Query

_POINTS = 240
"""Number of points of a line. If there were more, several would share one pixel."""
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


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
