"""Pictures of dashboards: a file's panels, lines with gaps, legends, units and thresholds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
from matplotlib.axes import Axes

from devkit.dashboards.model import Dashboard, read_dashboard
from devkit.dashboards.picture import draw, figure_of
from devkit.dashboards.series import Period, Series, legend_of, line_of
from devkit.dashboards.units import written

PERIOD = Period(end=1_800_000_000.0, seconds=600.0)
PNG = b"\x89PNG\r\n\x1a\n"


def panel(title: str, number: int, **defaults: Any) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "gridPos": {"x": 8 * number, "y": 0, "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": "s", **defaults}},
        "targets": [{"expr": "x", "legendFormat": "{{lane}}"}],
        "options": {"legend": {"sortBy": "Max"}},
    }


def dashboard(folder: Path, *panels: dict[str, Any]) -> Dashboard:
    file = folder / "fleet.json"
    file.write_text(json.dumps({"title": "A fleet", "panels": panels}))
    return read_dashboard(file)


def line(legend: str, *values: float) -> Series:
    return Series(legend, tuple(PERIOD.end - 60 + number for number in range(len(values))), values)


def legend_texts(axes: Axes) -> list[str]:
    """The legend's names, and its title if it has one."""
    legend = axes.get_legend()
    assert legend is not None
    return [text for each in (*legend.get_texts(), legend.get_title()) if (text := each.get_text())]


@pytest.mark.parametrize(
    ("pattern", "labels", "shown"),
    [
        ("{{lane}} alive", {"lane": "gpu"}, "gpu alive"),
        ("{{ model }} {{result}}", {"model": "m", "result": "failed"}, "m failed"),
        ("{{lane}}", {"lane": ""}, "Value"),
        ("{{lane}}", {}, "Value"),
        ("p95", {}, "p95"),
    ],
)
def test_a_legend_shows_the_values_of_labels_as_grafana_shows_them(
    pattern: str, labels: dict[str, str], shown: str
) -> None:
    assert legend_of(pattern, labels) == shown


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.025, "s", "25 ms"),
        (-90, "s", "-1.5 min"),
        (7_200, "s", "2 hour"),
        (1_500, "short", "1.5 K"),
        (0.5, "short", "0.5"),
        (0.25, "ops", "0.25 ops/s"),
        (12, "reqps", "12 req/s"),
        (2_000, "suffix: tokens/s", "2 K tokens/s"),
        (0.5, "percentunit", "50%"),
        (50, "percent", "50%"),
    ],
)
def test_a_number_has_its_unit_as_on_grafanas_axes(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


def test_a_time_without_a_value_is_a_gap_in_its_line() -> None:
    found = line_of("a", [10.0, 11.0, 12.0], [(10, "1"), (12, "+Inf")])

    assert found.values[::2] == (1.0, math.inf)
    assert math.isnan(found.values[1])
    assert not found.is_empty
    assert line_of("a", [10.0, 11.0], [(10, "NaN")]).is_empty


def test_a_panel_that_is_no_graph_is_refused_by_its_title(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'Sum' is a stat"):
        dashboard(tmp_path, {**panel("Sum", 0), "type": "stat"})


def test_a_picture_shows_titles_legends_units_thresholds_and_bounds_in_place(tmp_path: Path) -> None:
    steps = [{"value": None, "color": "green"}, {"value": 60, "color": "red"}]
    shown = {"thresholds": {"steps": steps}, "custom": {"thresholdsStyle": {"mode": "dashed"}}}
    read = dashboard(tmp_path, panel("Wait", 0, min=0, max=120, **shown), panel("Nothing", 1))
    first, second = figure_of(read, {read.panels[0]: [line("gpu", 1.0, 90.0)], read.panels[1]: []}, PERIOD).axes

    assert [each.get_title(loc="left") for each in (first, second)] == ["Wait", "Nothing"]
    assert first.get_ylim() == (0, 120)
    assert first.yaxis.get_major_formatter()(90, 0) == "1.5 min"
    assert legend_texts(first) == ["gpu"]
    assert [numpy.asarray(each.get_ydata()).tolist() for each in first.lines] == [[1.0, 90.0], [60, 60]]
    assert first.get_position().x1 < second.get_position().x0
    assert [text.get_text() for text in second.texts] == ["No data"]


def test_a_picture_is_written_as_png_whose_legend_begins_with_the_highest_of_many_series(tmp_path: Path) -> None:
    read = dashboard(tmp_path, panel("Routes", 0))
    lines = [line(f"/v1/route/{number}", float(number)) for number in range(25)]
    draw(read, {read.panels[0]: lines}, PERIOD, tmp_path / "fleet.png")
    [axes] = figure_of(read, {read.panels[0]: lines}, PERIOD).axes

    assert (tmp_path / "fleet.png").read_bytes().startswith(PNG)
    assert legend_texts(axes) == [f"/v1/route/{number}" for number in range(24, 4, -1)] + ["and 5 more"]


def test_a_rate_looks_back_over_at_least_four_scrapes() -> None:
    assert PERIOD.rate_interval == "60s"
    assert Period(0, 86_400, scrape_seconds=5).rate_interval == "365s"
