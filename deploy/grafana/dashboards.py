"""Writes the Grafana dashboards beside this file: `python deploy/grafana/dashboards.py`.

Each panel is one row of a table in this file, so a renamed metric changes one line. The JSON is Grafana's dashboard
model (https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph.

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
            Panel("Waiting jobs", "short", {"{{lane}}": "max by (lane) (postback_waiting_jobs)"}),
            Panel("Oldest waiting job", "s", {"{{lane}}": "max by (lane) (postback_oldest_job_seconds)"}),
            Panel("Tightest deadline", "s", {"{{lane}}": "min by (lane) (postback_tightest_deadline_seconds)"}),
            Panel(
                *("Workers", "short"),
                {
                    "{{lane}} alive": "max by (lane) (postback_workers)",
                    "{{lane}} wanted": "max by (lane) (postback_wanted_replicas)",
                },
                "The wanted workers answer all waiting jobs before their deadlines.",
            ),
            Panel("Results by outcome", "ops", {"{{outcome}}": rate("postback_jobs_total", "outcome")}),
            Panel(
                "Seconds in each phase, 95th percentile",
                "s",
                {
                    "{{phase}}": "histogram_quantile(0.95, sum by (le, phase) "
                    f"(rate(postback_job_seconds_bucket{_RATE})))"
                },
            ),
            Panel("Workers by model", "short", {"{{model}}": "max by (model) (postback_model_workers)"}),
            Panel("Dead letters", "short", {"open": "max(postback_open_dead_letters)"}),
            Panel("Dead letters by reason", "ops", {"{{reason}}": rate("postback_dead_letters_total", "reason")}),
        ),
    ),
    "delivery": (
        "Postback delivery",
        (
            Panel("Waiting callbacks", "short", {"waiting": "max(postback_waiting_callbacks)"}),
            Panel("Callback attempts by result", "ops", {"{{result}}": rate("postback_callbacks_total", "result")}),
            Panel("Age of delivered callbacks", "s", quantiles("postback_callback_age_seconds")),
            Panel(
                "Seconds of an attempt, 95th percentile",
                "s",
                {"deliver": phase_seconds("deliver")},
            ),
            Panel("Disabled endpoints", "short", {"disabled": "max(postback_disabled_endpoints)"}),
            Panel("Endpoints disabled", "ops", {"{{reason}}": rate("postback_endpoints_disabled_total", "reason")}),
            Panel("Circuit breakers", "ops", {"{{state}}": rate("postback_breaker_changes_total", "state")}),
            Panel("Deferred records", "ops", {"deferred": rate("postback_deferred_total")}),
        ),
    ),
    "enrichment": (
        "Postback enrichment",
        (
            Panel("Fetches by result", "ops", {"{{result}}": rate("postback_fetches_total", "result")}),
            Panel("Searches by result", "ops", {"{{result}}": rate("postback_searches_total", "result")}),
            Panel(
                "Seconds of enrichment, 95th percentile",
                "s",
                {"enrich": phase_seconds("enrich")},
            ),
            Panel(
                "Cache lookups", "ops", {"{{level}} {{result}}": rate("postback_cache_lookups_total", "level, result")}
            ),
            Panel(
                "Cache hits",
                "percentunit",
                {
                    "{{level}}": f'sum by (level) (rate(postback_cache_lookups_total{{result="hit"}}{_RATE})) / '
                    f"sum by (level) (rate(postback_cache_lookups_total{_RATE}))"
                },
            ),
            Panel("Reranking by result", "ops", {"{{result}}": rate("postback_reranks_total", "result")}),
            Panel("Seconds of reranking", "s", quantiles("postback_rerank_seconds")),
        ),
    ),
    "engine": (
        "Postback engine",
        (
            Panel("Tokens", "ops", {"{{kind}}": rate("postback_tokens_total", "kind")}),
            Panel(
                "Seconds of generation, 95th percentile",
                "s",
                {"infer": phase_seconds("infer")},
            ),
            Panel("Running jobs", "short", {"{{instance}}": "sum by (instance) (postback_in_flight)"}),
            Panel(
                "Jobs per second of one worker", "ops", {"{{lane}}": "max by (lane) (postback_worker_jobs_per_second)"}
            ),
            Panel("Engine restarts", "short", {"restarts": "sum(increase(postback_engine_restarts_total[15m]))"}),
            Panel(
                "Requests by model",
                "ops",
                {"{{model}} {{result}}": rate("postback_model_requests_total", "model, result")},
            ),
            Panel("Open circuits of models", "short", {"{{model}}": "max by (model) (postback_model_circuits_open)"}),
            Panel(
                "Tokens in vLLM's steps",
                "ops",
                {"{{kind}}": rate("postback_engine_tokens_total", "kind")},
                "Needs POSTBACK_ENGINE__VLLM__ENGINE_METRICS=true, like the panels after this one.",
            ),
            Panel(
                *("Prefix cache hits", "percentunit"),
                {
                    "hits": 'sum(rate(postback_engine_prefix_cache_tokens_total{result="hit"}[$__rate_interval]))'
                    " / sum(rate(postback_engine_prefix_cache_tokens_total[$__rate_interval]))"
                },
            ),
            Panel(
                *("Used KV cache", "percentunit"),
                {"{{instance}} {{rank}}": "max by (instance, rank) (postback_engine_kv_cache_usage_ratio)"},
            ),
            Panel("Requests in vLLM", "short", {"{{state}}": "sum by (state) (postback_engine_requests)"}),
            Panel("Preemptions", "ops", {"preempted": rate("postback_engine_preemptions_total")}),
            Panel(
                "GPU utilisation",
                "percent",
                {"{{gpu}}": "avg by (gpu) (DCGM_FI_DEV_GPU_UTIL)"},
                "From NVIDIA's dcgm-exporter, which runs beside the fleet.",
            ),
        ),
    ),
    "rollout": (
        "Postback rollout",
        (
            Panel("Share of the candidate", "percentunit", {"{{alias}}": "max by (alias) (postback_rollout_share)"}),
            Panel(
                "Evidence",
                "short",
                {"{{alias}} {{claim}}": "max by (alias, claim) (postback_rollout_e_value_log10)"},
                "log10 of the lowest e-value of the rollout's profiles; 1.3 decides.",
            ),
            Panel("Sampled jobs", "ops", {"{{result}}": rate("postback_rollout_samples_total", "result")}),
            Panel("Results by outcome", "ops", {"{{outcome}}": rate("postback_jobs_total", "outcome")}),
            Panel("Seconds of generation, 95th percentile", "s", {"infer": phase_seconds("infer")}),
            Panel("Tokens", "ops", {"{{kind}}": rate("postback_tokens_total", "kind")}),
            Panel("Workers by model", "short", {"{{model}}": "max by (model) (postback_model_workers)"}),
        ),
    ),
    "gateway": (
        "Postback gateway",
        (
            Panel("Requests by status", "reqps", {"{{status}}": rate("postback_http_requests_total", "status")}),
            Panel("Requests by route", "reqps", {"{{route}}": rate("postback_http_requests_total", "route")}),
            Panel(
                "Seconds of a request, 99th percentile",
                "s",
                {
                    "{{route}}": "histogram_quantile(0.99, sum by (le, route) "
                    f"(rate(postback_http_request_seconds_bucket{_RATE})))"
                },
            ),
            Panel("Connections", "short", {"{{instance}}": "sum by (instance) (postback_http_connections)"}),
            Panel("Refused connections", "ops", {"refused": rate("postback_http_connections_refused_total")}),
            Panel("Outbox", "short", {"records": "max(postback_outbox_records)"}),
            Panel("Records put on Kafka", "ops", {"relayed": rate("postback_relayed_records_total")}),
            Panel("Rows of the view", "ops", {"{{kind}}": rate("postback_viewed_records_total", "kind")}),
            Panel("Input filter", "ops", {"{{verdict}}": rate("postback_screened_total", "verdict")}),
        ),
    ),
    "kafka": (
        "Postback on Kafka",
        (
            Panel("Waiting records by topic", "short", {"{{topic}}": "max by (topic) (postback_waiting_records)"}),
            Panel("Backlog by the owners", "short", {"{{topic}}": "sum by (topic) (postback_backlog_records)"}),
            Panel("Settled records", "ops", {"settled": rate("postback_settled_records_total")}),
            Panel("Settle transactions", "ops", {"{{result}}": rate("postback_settles_total", "result")}),
            Panel(
                "Seconds of a settle, 95th percentile",
                "s",
                {"settle": phase_seconds("settle")},
            ),
            Panel("Repairs", "ops", {"{{kind}}": rate("postback_repairs_total", "kind")}),
            Panel(
                "Offsets that retention removed", "short", {"lost": "sum(increase(postback_retention_loss_total[1h]))"}
            ),
            Panel("Quarantined records", "short", {"given up": "sum(increase(postback_quarantined_total[1h]))"}),
            Panel("Age of the exporter's figures", "s", {"age": "time() - max(postback_figures_timestamp_seconds)"}),
        ),
    ),
}


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard in Grafana's model."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"postback-{name}",
        "title": title,
        "tags": ["postback"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": expression, "legendFormat": legend}
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def documents() -> dict[Path, str]:
    """Map each file's path to its text."""
    return {FOLDER / f"{name}.json": json.dumps(dashboard(name), indent=1) + "\n" for name in DASHBOARDS}


def main() -> None:
    """Write all files."""
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
