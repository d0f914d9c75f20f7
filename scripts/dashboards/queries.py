"""The PromQL of the dashboards' panels, and the limits of the alerts."""

from __future__ import annotations

from pathlib import Path

import yaml
from promql_parser import BinaryExpr, Expr, NumberLiteral, parse, walk

_RULES = Path(__file__).parents[2] / "helm" / "postback" / "files" / "prometheus" / "postback.rules.yml"
RATE = "[$__rate_interval]"
COUNTED = "A point is the number in the 15 minutes before it."
"""The description of a panel whose queries `count` returns."""


def rate(metric: str, by: str = "") -> str:
    """Return the rate of a counter per second, summed by a label."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping}(rate({metric}{RATE}))"


def count(metric: str, by: str = "") -> str:
    """Return the query for the number of rare events, whose rate per second would be too small to read."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping}(increase({metric}[15m]))"


def of_those_with(metric: str, other: str) -> str:
    """Return the query for a metric of each process that has another one too; all processes have the metric itself."""
    return f"sum by (instance) ({metric}) and on (instance) sum by (instance) ({other})"


def quantiles(histogram: str, by: str = "") -> dict[str, str]:
    """Return the median, the 95th and the 99th percentile of a histogram."""
    grouping, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    return {
        f"p{number}{legend}": f"histogram_quantile(0.{number}, sum by ({grouping}) (rate({histogram}_bucket{RATE})))"
        for number in (50, 95, 99)
    }


def phase_seconds(phase: str) -> str:
    """Return the query for the 95th percentile of jobs' seconds in a phase."""
    return f'histogram_quantile(0.95, sum by (le) (rate(postback_job_seconds_bucket{{phase="{phase}"}}{RATE})))'


def by_lane(function: str, metric: str) -> str:
    """Return the query for a metric of each lane.

    The lanes of the whole fleet have an empty label, which a legend cannot show; the query replaces it by `fleet`.
    """
    return f'label_replace({function} by (lane) ({metric}), "lane", "fleet", "lane", "")'


def alert_limit(alert: str) -> float:
    """Return the number with which an alert of helm/postback/files/prometheus compares its figure."""
    groups = yaml.safe_load(_RULES.read_text(encoding="utf-8"))["groups"]
    [query] = [rule["expr"] for group in groups for rule in group["rules"] if rule.get("alert") == alert]
    limits: list[float] = []

    def note(node: Expr) -> None:
        if isinstance(node, BinaryExpr) and isinstance(node.rhs, NumberLiteral):
            limits.append(node.rhs.val)

    walk(parse(query), note)
    return limits[0]
