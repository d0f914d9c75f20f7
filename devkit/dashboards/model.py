"""A dashboard's panels and queries, read from its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
