"""One panel of a dashboard, built by Grafana's library (https://github.com/grafana/grafana-foundation-sdk)."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase

from grafana_foundation_sdk.builders.common import GraphThresholdsStyleConfig, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.units import PercentUnit

TokensPerSecond, JobsPerSecond, RecordsPerSecond = "suffix: tokens/s", "suffix: jobs/s", "suffix: records/s"
_DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH, _HEIGHT = 8, 8
"""Three panels fill the 24 columns of Grafana's grid."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph. `unit` is an id of Grafana's units.

    `queries` maps each legend to its PromQL; Grafana replaces `{{label}}` in a legend by the label's value.
    """

    title: str
    unit: str
    queries: dict[str, str]
    about: str = ""
    limit: float | None = None
    """A dashed line, mostly the limit of an alert."""
    low: float | None = 0
    """Begin of the axis. With an axis that begins near the values, a small change of a large number fills the graph.
    None for values that may be below 0."""


def graph_of(panel: Panel) -> Timeseries:
    """Return the builder of a panel."""
    legend = VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    if any("{{" in text for text in panel.queries):  # a panel with many series lists the busiest first
        legend.display_mode(LegendDisplayMode.TABLE).calcs(["max", "lastNotNull"]).sort_by("Max").sort_desc(True)
    graph = (
        Timeseries()
        .title(panel.title)
        .description(panel.about)
        .datasource(_DATASOURCE)
        .span(_WIDTH)
        .height(_HEIGHT)
        .unit(panel.unit)
        .legend(legend)
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.low is not None:
        graph.min(panel.low)
    if panel.unit == PercentUnit:
        graph.max(1)
    if panel.limit is not None:
        steps = [Threshold(color="transparent"), Threshold(panel.limit, "red")]
        graph.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        graph.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    for letter, (text, query) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        asked = Dataquery().ref_id(letter).datasource(_DATASOURCE).expr(query).legend_format(text).range()
        graph.with_target(asked)
    return graph
