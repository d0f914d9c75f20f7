"""Writes the Grafana dashboards into the chart's files: `python -m scripts.dashboards`.

Each panel is one row of a table in this file, so a renamed metric changes one line.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync
from grafana_foundation_sdk.models.units import (
    OpsPerSecond,
    Percent,
    PercentUnit,
    RequestsPerSecond,
    Seconds,
    Short,
)

from scripts.dashboards.panels import JobsPerSecond, Panel, RecordsPerSecond, TokensPerSecond, graph_of
from scripts.dashboards.queries import (
    COUNTED,
    RATE,
    alert_limit,
    by_lane,
    count,
    of_those_with,
    phase_seconds,
    quantiles,
    rate,
)

FOLDER = Path(__file__).parents[2] / "helm" / "postback" / "files" / "dashboards"

DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "fleet": (
        "Postback fleet",
        (
            Panel("Waiting jobs", Short, {"{{lane}}": by_lane("max", "postback_waiting_jobs")}),
            Panel("Oldest waiting job", Seconds, {"{{lane}}": by_lane("max", "postback_oldest_job_seconds")}),
            Panel(
                *("Tightest deadline", Seconds),
                {"{{lane}}": by_lane("min", "postback_tightest_deadline_seconds")},
                "Negative once it has passed; an alert fires below the line.",
                limit=alert_limit("PostbackDeadlineNear"),
                low=None,
            ),
            Panel(
                *("Workers", Short),
                {
                    "{{lane}} alive": by_lane("max", "postback_workers"),
                    "{{lane}} wanted": by_lane("max", "postback_wanted_replicas"),
                },
                "The wanted workers answer all waiting jobs before their deadlines.",
            ),
            Panel("Results by outcome", JobsPerSecond, {"{{outcome}}": rate("postback_jobs_total", "outcome")}),
            Panel(
                "Seconds in each phase, 95th percentile",
                Seconds,
                {
                    "{{phase}}": "histogram_quantile(0.95, sum by (le, phase) "
                    f"(rate(postback_job_seconds_bucket{RATE})))"
                },
            ),
            Panel("Workers by model", Short, {"{{model}}": "max by (model) (postback_model_workers)"}),
            Panel("Dead letters", Short, {"open": "max(postback_open_dead_letters)"}),
            Panel(
                "Dead letters by reason", Short, {"{{reason}}": count("postback_dead_letters_total", "reason")}, COUNTED
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
            Panel(
                *("Age of delivered callbacks", Seconds),
                quantiles("postback_callback_age_seconds"),
                "An alert fires if the 95th percentile is above the line for a while.",
                limit=alert_limit("PostbackCallbacksLate"),
            ),
            Panel(
                "Seconds of an attempt, 95th percentile",
                Seconds,
                {"deliver": phase_seconds("deliver")},
            ),
            Panel("Disabled endpoints", Short, {"disabled": "max(postback_disabled_endpoints)"}),
            Panel(
                "Endpoints disabled",
                Short,
                {"{{reason}}": count("postback_endpoints_disabled_total", "reason")},
                COUNTED,
            ),
            Panel("Circuit breakers", Short, {"{{state}}": count("postback_breaker_changes_total", "state")}, COUNTED),
            Panel("Deferred records", RecordsPerSecond, {"deferred": rate("postback_deferred_total")}),
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
                    "{{level}}": f'sum by (level) (rate(postback_cache_lookups_total{{result="hit"}}{RATE})) / '
                    f"sum by (level) (rate(postback_cache_lookups_total{RATE}))"
                },
            ),
            Panel("Reranking by result", JobsPerSecond, {"{{result}}": rate("postback_reranks_total", "result")}),
            Panel("Seconds of reranking", Seconds, quantiles("postback_rerank_seconds")),
        ),
    ),
    "engine": (
        "Postback engine",
        (
            Panel("Tokens", TokensPerSecond, {"{{kind}}": rate("postback_tokens_total", "kind")}),
            Panel(
                "Seconds of generation, 95th percentile",
                Seconds,
                {"infer": phase_seconds("infer")},
            ),
            Panel("Running jobs", Short, {"{{instance}}": of_those_with("postback_in_flight", "postback_jobs_total")}),
            Panel(
                "Jobs per second of one worker",
                JobsPerSecond,
                {"{{lane}}": by_lane("max", "postback_worker_jobs_per_second")},
            ),
            Panel("Engine restarts", Short, {"restarts": count("postback_engine_restarts_total")}, COUNTED),
            Panel(
                "Requests by model",
                OpsPerSecond,
                {"{{model}} {{result}}": rate("postback_model_requests_total", "model, result")},
            ),
            Panel("Open circuits of models", Short, {"{{model}}": "max by (model) (postback_model_circuits_open)"}),
            Panel(
                "Tokens in vLLM's steps",
                TokensPerSecond,
                {"{{kind}}": rate("postback_engine_tokens_total", "kind")},
                'Needs POSTBACK_ENGINE__VLLM__EXTRA={"disable_log_stats": false}, like the panels after this one.',
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
                "From NVIDIA's dcgm-exporter, as the job postback-gpu; an alert fires above the line.",
                limit=alert_limit("PostbackGpuBusy"),
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
                "log10 of the lowest e-value of the rollout's profiles; the line decides.",
                limit=1.3,
                low=None,
            ),
            Panel("Sampled jobs", JobsPerSecond, {"{{result}}": rate("postback_rollout_samples_total", "result")}),
            Panel("Results by outcome", JobsPerSecond, {"{{outcome}}": rate("postback_jobs_total", "outcome")}),
            Panel("Seconds of generation, 95th percentile", Seconds, {"infer": phase_seconds("infer")}),
            Panel("Tokens", TokensPerSecond, {"{{kind}}": rate("postback_tokens_total", "kind")}),
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
                    f"(rate(postback_http_request_seconds_bucket{RATE})))"
                },
                "Routes that wait for an answer or stream events count whole. "
                "An alert fires if accepting a job takes longer than the line.",
                limit=alert_limit("PostbackDoorSlow"),
            ),
            Panel(
                "Connections",
                Short,
                {"{{instance}}": of_those_with("postback_http_connections", "postback_http_requests_total")},
            ),
            Panel("Refused connections", OpsPerSecond, {"refused": rate("postback_http_connections_refused_total")}),
            Panel("Outbox", Short, {"records": "max(postback_outbox_records)"}),
            Panel("Records put on Kafka", RecordsPerSecond, {"relayed": rate("postback_relayed_records_total")}),
            Panel("Rows of the view", OpsPerSecond, {"{{kind}}": rate("postback_viewed_records_total", "kind")}),
            Panel("Input filter", JobsPerSecond, {"{{verdict}}": rate("postback_screened_total", "verdict")}),
        ),
    ),
    "kafka": (
        "Postback on Kafka",
        (
            Panel("Waiting records by topic", Short, {"{{topic}}": "max by (topic) (postback_waiting_records)"}),
            Panel("Backlog by the owners", Short, {"{{topic}}": "sum by (topic) (postback_backlog_records)"}),
            Panel("Settled records", RecordsPerSecond, {"settled": rate("postback_settled_records_total")}),
            Panel("Settle transactions", OpsPerSecond, {"{{result}}": rate("postback_settles_total", "result")}),
            Panel(
                "Seconds of a settle, 95th percentile",
                Seconds,
                {"settle": phase_seconds("settle")},
            ),
            Panel("Repairs", Short, {"{{kind}}": count("postback_repairs_total", "kind")}, COUNTED),
            Panel(
                "Offsets that retention removed", Short, {"lost": "sum(increase(postback_retention_loss_total[1h]))"}
            ),
            Panel("Quarantined records", Short, {"given up": "sum(increase(postback_quarantined_total[1h]))"}),
            Panel(
                *("Age of the exporter's figures", Seconds),
                {"age": "time() - max(postback_figures_timestamp_seconds)"},
                "An alert fires above the line.",
                limit=alert_limit("PostbackFiguresStale"),
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
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for number, panel in enumerate(panels, start=1):
        built.with_panel(graph_of(panel).id(number))
    return built


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
