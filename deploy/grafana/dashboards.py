"""Writes the Grafana dashboards beside this file: `python deploy/grafana/dashboards.py`.

Each panel is one row of a table in this file, so a renamed metric changes one line. Grafana's own library
(https://github.com/grafana/grafana-foundation-sdk) builds the JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders.common import VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.units import (
    OpsPerSecond,
    Percent,
    PercentUnit,
    RequestsPerSecond,
    Seconds,
    Short,
)

FOLDER = Path(__file__).parent
_DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH, _HEIGHT = 8, 8
"""Three panels fill the 24 columns of Grafana's grid."""
_RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph. `unit` is an id of Grafana's units.

    `queries` maps each legend to its PromQL; Grafana replaces `{{label}}` in a legend by the label's value.
    """

    title: str
    unit: str
    queries: dict[str, str]
    about: str = ""


def rate(metric: str, by: str = "") -> str:
    """Return the rate of a counter per second, summed by a label."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping}(rate({metric}{_RATE}))"


def quantiles(histogram: str, by: str = "") -> dict[str, str]:
    """Return the median, the 95th and the 99th percentile of a histogram."""
    grouping, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    return {
        f"p{number}{legend}": f"histogram_quantile(0.{number}, sum by ({grouping}) (rate({histogram}_bucket{_RATE})))"
        for number in (50, 95, 99)
    }


def phase_seconds(phase: str) -> str:
    """Return the query for the 95th percentile of jobs' seconds in a phase."""
    return f'histogram_quantile(0.95, sum by (le) (rate(postback_job_seconds_bucket{{phase="{phase}"}}{_RATE})))'


DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "fleet": (
        "Postback fleet",
        (
            Panel("Waiting jobs", Short, {"{{lane}}": "max by (lane) (postback_waiting_jobs)"}),
            Panel("Oldest waiting job", Seconds, {"{{lane}}": "max by (lane) (postback_oldest_job_seconds)"}),
            Panel("Tightest deadline", Seconds, {"{{lane}}": "min by (lane) (postback_tightest_deadline_seconds)"}),
            Panel(
                *("Workers", Short),
                {
                    "{{lane}} alive": "max by (lane) (postback_workers)",
                    "{{lane}} wanted": "max by (lane) (postback_wanted_replicas)",
                },
                "The wanted workers answer all waiting jobs before their deadlines.",
            ),
            Panel("Results by outcome", OpsPerSecond, {"{{outcome}}": rate("postback_jobs_total", "outcome")}),
            Panel(
                "Seconds in each phase, 95th percentile",
                Seconds,
                {
                    "{{phase}}": "histogram_quantile(0.95, sum by (le, phase) "
                    f"(rate(postback_job_seconds_bucket{_RATE})))"
                },
            ),
            Panel("Workers by model", Short, {"{{model}}": "max by (model) (postback_model_workers)"}),
            Panel("Dead letters", Short, {"open": "max(postback_open_dead_letters)"}),
            Panel(
                "Dead letters by reason", OpsPerSecond, {"{{reason}}": rate("postback_dead_letters_total", "reason")}
            ),
        ),
    ),
    "delivery": (
        "Postback delivery",
        (
            Panel("Waiting callbacks", Short, {"waiting": "max(postback_waiting_callbacks)"}),
            Panel(
                "Callback attempts by result", OpsPerSecond, {"{{result}}": rate("postback_callbacks_total", "result")}
            ),
            Panel("Age of delivered callbacks", Seconds, quantiles("postback_callback_age_seconds")),
            Panel(
                "Seconds of an attempt, 95th percentile",
                Seconds,
                {"deliver": phase_seconds("deliver")},
            ),
            Panel("Disabled endpoints", Short, {"disabled": "max(postback_disabled_endpoints)"}),
            Panel(
                "Endpoints disabled", OpsPerSecond, {"{{reason}}": rate("postback_endpoints_disabled_total", "reason")}
            ),
            Panel("Circuit breakers", OpsPerSecond, {"{{state}}": rate("postback_breaker_changes_total", "state")}),
            Panel("Deferred records", OpsPerSecond, {"deferred": rate("postback_deferred_total")}),
        ),
    ),
    "enrichment": (
        "Postback enrichment",
        (
            Panel("Fetches by result", OpsPerSecond, {"{{result}}": rate("postback_fetches_total", "result")}),
            Panel("Searches by result", OpsPerSecond, {"{{result}}": rate("postback_searches_total", "result")}),
            Panel(
                "Seconds of enrichment, 95th percentile",
                Seconds,
                {"enrich": phase_seconds("enrich")},
            ),
            Panel(
                "Cache lookups",
                OpsPerSecond,
                {"{{level}} {{result}}": rate("postback_cache_lookups_total", "level, result")},
            ),
            Panel(
                "Cache hits",
                PercentUnit,
                {
                    "{{level}}": f'sum by (level) (rate(postback_cache_lookups_total{{result="hit"}}{_RATE})) / '
                    f"sum by (level) (rate(postback_cache_lookups_total{_RATE}))"
                },
            ),
            Panel("Reranking by result", OpsPerSecond, {"{{result}}": rate("postback_reranks_total", "result")}),
            Panel("Seconds of reranking", Seconds, quantiles("postback_rerank_seconds")),
        ),
    ),
    "engine": (
        "Postback engine",
        (
            Panel("Tokens", OpsPerSecond, {"{{kind}}": rate("postback_tokens_total", "kind")}),
            Panel(
                "Seconds of generation, 95th percentile",
                Seconds,
                {"infer": phase_seconds("infer")},
            ),
            Panel("Running jobs", Short, {"{{instance}}": "sum by (instance) (postback_in_flight)"}),
            Panel(
                "Jobs per second of one worker",
                OpsPerSecond,
                {"{{lane}}": "max by (lane) (postback_worker_jobs_per_second)"},
            ),
            Panel("Engine restarts", Short, {"restarts": "sum(increase(postback_engine_restarts_total[15m]))"}),
            Panel(
                "Requests by model",
                OpsPerSecond,
                {"{{model}} {{result}}": rate("postback_model_requests_total", "model, result")},
            ),
            Panel("Open circuits of models", Short, {"{{model}}": "max by (model) (postback_model_circuits_open)"}),
            Panel(
                "Tokens in vLLM's steps",
                OpsPerSecond,
                {"{{kind}}": rate("postback_engine_tokens_total", "kind")},
                "Needs POSTBACK_ENGINE__VLLM__ENGINE_METRICS=true, like the panels after this one.",
            ),
            Panel(
                *("Prefix cache hits", PercentUnit),
                {
                    "hits": 'sum(rate(postback_engine_prefix_cache_tokens_total{result="hit"}[$__rate_interval]))'
                    " / sum(rate(postback_engine_prefix_cache_tokens_total[$__rate_interval]))"
                },
            ),
            Panel(
                *("Used KV cache", PercentUnit),
                {"{{instance}} {{rank}}": "max by (instance, rank) (postback_engine_kv_cache_usage_ratio)"},
            ),
            Panel("Requests in vLLM", Short, {"{{state}}": "sum by (state) (postback_engine_requests)"}),
            Panel("Preemptions", OpsPerSecond, {"preempted": rate("postback_engine_preemptions_total")}),
            Panel(
                "GPU utilisation",
                Percent,
                {"{{gpu}}": 'avg by (gpu) (DCGM_FI_DEV_GPU_UTIL{job="postback-gpu"})'},
                "From NVIDIA's dcgm-exporter, as the job postback-gpu.",
            ),
        ),
    ),
    "rollout": (
        "Postback rollout",
        (
            Panel("Share of the candidate", PercentUnit, {"{{alias}}": "max by (alias) (postback_rollout_share)"}),
            Panel(
                "Evidence",
                Short,
                {"{{alias}} {{claim}}": "max by (alias, claim) (postback_rollout_e_value_log10)"},
                "log10 of the lowest e-value of the rollout's profiles; 1.3 decides.",
            ),
            Panel("Sampled jobs", OpsPerSecond, {"{{result}}": rate("postback_rollout_samples_total", "result")}),
            Panel("Results by outcome", OpsPerSecond, {"{{outcome}}": rate("postback_jobs_total", "outcome")}),
            Panel("Seconds of generation, 95th percentile", Seconds, {"infer": phase_seconds("infer")}),
            Panel("Tokens", OpsPerSecond, {"{{kind}}": rate("postback_tokens_total", "kind")}),
            Panel("Workers by model", Short, {"{{model}}": "max by (model) (postback_model_workers)"}),
        ),
    ),
    "gateway": (
        "Postback gateway",
        (
            Panel(
                "Requests by status", RequestsPerSecond, {"{{status}}": rate("postback_http_requests_total", "status")}
            ),
            Panel("Requests by route", RequestsPerSecond, {"{{route}}": rate("postback_http_requests_total", "route")}),
            Panel(
                "Seconds of a request, 99th percentile",
                Seconds,
                {
                    "{{route}}": "histogram_quantile(0.99, sum by (le, route) "
                    f"(rate(postback_http_request_seconds_bucket{_RATE})))"
                },
            ),
            Panel("Connections", Short, {"{{instance}}": "sum by (instance) (postback_http_connections)"}),
            Panel("Refused connections", OpsPerSecond, {"refused": rate("postback_http_connections_refused_total")}),
            Panel("Outbox", Short, {"records": "max(postback_outbox_records)"}),
            Panel("Records put on Kafka", OpsPerSecond, {"relayed": rate("postback_relayed_records_total")}),
            Panel("Rows of the view", OpsPerSecond, {"{{kind}}": rate("postback_viewed_records_total", "kind")}),
            Panel("Input filter", OpsPerSecond, {"{{verdict}}": rate("postback_screened_total", "verdict")}),
        ),
    ),
    "kafka": (
        "Postback on Kafka",
        (
            Panel("Waiting records by topic", Short, {"{{topic}}": "max by (topic) (postback_waiting_records)"}),
            Panel("Backlog by the owners", Short, {"{{topic}}": "sum by (topic) (postback_backlog_records)"}),
            Panel("Settled records", OpsPerSecond, {"settled": rate("postback_settled_records_total")}),
            Panel("Settle transactions", OpsPerSecond, {"{{result}}": rate("postback_settles_total", "result")}),
            Panel(
                "Seconds of a settle, 95th percentile",
                Seconds,
                {"settle": phase_seconds("settle")},
            ),
            Panel("Repairs", OpsPerSecond, {"{{kind}}": rate("postback_repairs_total", "kind")}),
            Panel(
                "Offsets that retention removed", Short, {"lost": "sum(increase(postback_retention_loss_total[1h]))"}
            ),
            Panel("Quarantined records", Short, {"given up": "sum(increase(postback_quarantined_total[1h]))"}),
            Panel(
                "Age of the exporter's figures", Seconds, {"age": "time() - max(postback_figures_timestamp_seconds)"}
            ),
        ),
    ),
}


def dashboard(name: str) -> Dashboard:
    """Return the builder of a dashboard."""
    title, panels = DASHBOARDS[name]
    built = (
        Dashboard(title)
        .uid(f"postback-{name}")
        .tags(["postback"])
        .refresh("30s")
        .time("now-6h", "now")
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for number, panel in enumerate(panels, start=1):
        built.with_panel(_graph(panel).id(number))
    return built


def _graph(panel: Panel) -> Timeseries:
    legend = VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
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
    for letter, (text, query) in zip(ascii_uppercase, panel.queries.items(), strict=False):
        asked = Dataquery().ref_id(letter).datasource(_DATASOURCE).expr(query).legend_format(text).range()
        graph.with_target(asked)
    return graph


def documents() -> dict[Path, str]:
    """Map each file's path to its text."""
    encoder = JSONEncoder(indent=1)
    return {FOLDER / f"{name}.json": encoder.encode(dashboard(name).build()) + "\n" for name in DASHBOARDS}


def main() -> None:
    """Write all files."""
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
