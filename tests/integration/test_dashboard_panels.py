"""Each panel of the dashboards shows data of a real fleet: a real Prometheus answers the queries that Grafana sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest

from cli.devkit.receiver import Behaviour
from scripts.dashboards.__main__ import FOLDER as DASHBOARDS
from scripts.play.model import embedding_model
from telemetry.clock import Deadline, SystemClock
from telemetry.health import READY, HealthServer
from telemetry.metrics import Metrics
from tests.http_handler import Answering, handling
from tests.integration.gateway.gateway_process import running_gateway
from tests.integration.test_engine_contract import request
from tests.product import Product, Role, eventually
from tests.prometheus_tools import Prometheus, scraping
from tests.rollout_fleet import FAST, echo_fleet
from tests.screening_rules import words
from workers.engines.vllm import VllmEngine

OF_VLLM = {
    ("engine", "Tokens in vLLM's steps"),
    ("engine", "Prefix cache hits"),
    ("engine", "Used KV cache"),
    ("engine", "Requests in vLLM"),
    ("engine", "Preemptions"),
}
NOT_HERE = {("engine", "GPU utilisation"): "dcgm-exporter reads an NVIDIA GPU"}
"""Panels without data on a machine without a GPU, each with the reason."""
RATE_INTERVAL = "1m"
"""Grafana's value of `$__rate_interval`: four scrapes of its data source, which are 15 s apart by default."""
SHOWN_SECONDS = 600.0
FACTS = "".join(
    f"<p>Oven {number}: sand melts at {1700 + number} degrees and becomes glass.</p>" for number in range(9)
)

Panel = tuple[str, str]
"""The dashboard and the title."""


def panels() -> dict[Panel, list[str]]:
    """The queries of each panel, with variables filled in as Grafana fills them."""
    dashboards = {file.stem: json.loads(file.read_text()) for file in DASHBOARDS.glob("*.json")}
    return {
        (name, panel["title"]): [each["expr"].replace("$__rate_interval", RATE_INTERVAL) for each in panel["targets"]]
        for name, dashboard in dashboards.items()
        for panel in dashboard["panels"]
    }


def test_every_panel_except_those_of_a_gpu_is_tested_below() -> None:
    assert panels().keys() >= OF_VLLM | NOT_HERE.keys()
    assert len({title for _, title in panels()}) > 50
    assert [query for queries in panels().values() for query in queries if "$" in query] == []


@pytest.mark.broker
@pytest.mark.timeout(900)
def test_each_panel_shows_data_of_a_fleet_with_sources_a_rollout_and_a_failing_callback(
    product: Product, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(f"[[rule]]\n{words()}\n")
    product.callbacks.tenants = ("default", "acme")
    product.callbacks.up(Behaviour(fail_first=1))
    with ExitStack() as stack:
        web = stack.enter_context(handling(Web))
        fleet = echo_fleet(product, tmp_path, **settings_with_sources(web), POSTBACK_SCREENING__RULES=str(rules))
        gateway = stack.enter_context(running_gateway(product, POSTBACK_SCREENING__RULES=str(rules)))
        roles: dict[str, list[Role]] = {
            "postback-worker": [fleet.worker, product.worker("s1", "--engine", "echo", "--model", "next", "--shadow")],
            "postback-delivery": [product.deliver("d1")],
            "postback-gateway": [gateway.role],
            "postback-exporter": [product.exporter("e1", POSTBACK_EXPORTER__INTERVAL_SECONDS="0.2")],
        }
        ports = {name: [role.port for role in several] for name, several in roles.items()}
        prometheus = stack.enter_context(scraping(tmp_path, ports))

        fleet.rollout("start", "--alias", "assistant", "--candidate", "next", *FAST)
        fleet.until("promoted")
        job = {"prompt": "At which temperature does sand melt?", "callback_url": product.callbacks.url}
        sources = {"urls": [f"{web}/glass"], "search": {"provider": "searxng", "query": "sand melts"}}
        product.submit([{**job, "model_id": "assistant", "sources": sources}])
        product.wait_for_callbacks(1, 120)
        key = gateway.key()
        accepted = gateway.post("/v1/jobs", key, json={**job, "model_id": "assistant"})
        assert accepted.ok, accepted.text
        # This job stays unanswered, and has a deadline.
        product.submit([{"prompt": "[[sleep 300]]", "model_id": "assistant"}])

        asked = panels().keys() - OF_VLLM - NOT_HERE.keys()

        def each_shows_data() -> bool:
            gateway.get("/v1/models", key)  # a panel with a quantile needs requests between two scrapes
            return silent(prometheus, asked) == []

        eventually(each_shows_data, 180, lambda: f"no data: {silent(prometheus, asked)}")


@pytest.mark.vllm
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.timeout(1_200)
async def test_each_panel_of_vllm_shows_data_of_a_real_engine(
    vllm_engine: VllmEngine, vllm_metrics: Metrics, tmp_path: Path
) -> None:
    with HealthServer(vllm_metrics, lambda: READY) as health, scraping(tmp_path, {"w": [health.port]}) as prometheus:
        deadline = Deadline.after(SystemClock(), 180)
        while left := await asyncio.to_thread(silent, prometheus, OF_VLLM):
            assert not deadline.passed, f"no data: {left}"
            await vllm_engine.generate(request())  # a panel with a rate needs work between two scrapes


def silent(prometheus: Prometheus, asked: Iterable[Panel]) -> list[tuple[Panel, str]]:
    """Return the queries of these panels that give no number."""
    queries = panels()
    return [
        (panel, query)
        for panel in sorted(asked)
        for query in queries[panel]
        if not prometheus.values(query, SHOWN_SECONDS)
    ]


def settings_with_sources(web: str) -> dict[str, str]:
    """The variables of a worker that searches and reads this site, and compares its passages by an embedding model."""
    return {
        "HF_HUB_OFFLINE": "1",
        "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
        "POSTBACK_SEARCH__SEARXNG__BASE_URL": web,
        "POSTBACK_ENRICHMENT__RERANK_MODEL": str(embedding_model()),
        "POSTBACK_ENRICHMENT__RERANK_SECONDS": "30",
        "POSTBACK_ENRICHMENT__EVIDENCE_CHARS": "200",
    }


class Web(Answering):
    """A SearXNG that finds one page, and the site with this page."""

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        if place == "/search":
            found = {"url": f"http://{self.headers['Host']}/sand", "title": "Sand", "content": "About sand"}
            self.answer_json(200, {"results": [found], "unresponsive_engines": []})
        elif place in ("/glass", "/sand"):
            self.answer(200, f"<html><title>On {place[1:]}</title><body>{FACTS}</body></html>".encode())
        else:
            self.send_error(404)
