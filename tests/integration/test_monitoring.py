"""Alerts and dashboards ask for existing series; alerts reach an operator, and panels show a fleet's data."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql_parser import AggModifierType, AggregateExpr, Expr, VectorSelector, parse, walk

from cli.devkit.receiver import Behaviour
from cli.operations.certificates import LEAF_DAYS, Leaf, init, issue
from scripts.dashboards import __main__ as dashboards
from scripts.dashboards.__main__ import FOLDER as DASHBOARDS
from scripts.play.model import embedding_model
from scripts.publish.reference import PROMISES, ROOT
from telemetry.clock import Deadline, SystemClock
from telemetry.health import READY, HealthServer
from telemetry.metrics import Metrics
from tests.fleet_here import FleetHere
from tests.http_handler import Answering, handling
from tests.integration.gateway.gateway_process import Gateway, running_gateway, start_gateway
from tests.integration.test_certs_command import NOW
from tests.integration.test_engine_contract import request
from tests.postback_command import environment_of, postback
from tests.product import Product, Role, eventually
from tests.prometheus_tools import Prometheus, alertmanager, free_port, promtool, scraping
from tests.rollout_fleet import FAST, echo_fleet
from tests.screening_rules import words
from workers.engines.vllm import VllmEngine


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric, and the label values that an expression asks for."""

    metric: str
    values: dict[str, str]


def selectors(query: str) -> list[Selector]:
    """The selectors of an expression. Raises ValueError if it is not PromQL, also if a function gets a wrong type."""
    return [
        Selector(node.name or "", {each.name: each.value for each in node.matchers.matchers})
        for node in _nodes(query)
        if isinstance(node, VectorSelector)
    ]


def kept_labels(query: str) -> set[str] | None:
    """The labels that the outermost aggregation keeps, None if the expression aggregates nothing."""
    for node in _nodes(query):
        if isinstance(node, AggregateExpr):
            assert node.modifier is None or node.modifier.type == AggModifierType.By, query
            return set(node.modifier.labels if node.modifier else ())
    return None


def _nodes(query: str) -> Iterator[Expr]:
    """The nodes, from the outside to the inside."""
    found: list[Expr] = []
    walk(parse(query), found.append)
    return iter(found)


RULES_FOLDER = ROOT / "helm" / "postback" / "files" / "prometheus"
RULES = "postback.rules.yml"
TESTS = "postback.rules_test.yml"
OF_OTHERS = {"DCGM_FI_DEV_GPU_UTIL", "up"}
"""Metrics of NVIDIA's dcgm-exporter, and of Prometheus itself."""
METRIC = re.compile(r"\b(?:postback_\w+|DCGM_\w+|up\b)")
RECORDED = re.compile(r"\bpostback:[\w:]+")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((RULES_FOLDER / RULES).read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("arguments", [("check", "rules", "--lint-fatal", RULES), ("test", "rules", TESTS)])
def test_promtool_accepts_the_rules_and_their_tests_pass(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [promtool(), *arguments], cwd=RULES_FOLDER, capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_to_fire_to_be_silent_before_and_in_a_healthy_fleet() -> None:
    tested = yaml.safe_load((RULES_FOLDER / TESTS).read_text())["tests"]
    shown = [
        (test["name"], case["alertname"], bool(case["exp_alerts"]))
        for test in tested
        for case in test["alert_rule_test"]
    ]

    for alert in alerts():
        assert {(alert, alert, True), (alert, alert, False), ("a healthy fleet", alert, False)} <= set(shown)


def test_each_rule_asks_for_metrics_that_the_program_has() -> None:
    exposed = {sample for family in Metrics().registry.collect() for sample in names_of(family)}
    recorded = {rule["record"] for rule in rules() if "record" in rule}

    for rule in rules():
        assert set(METRIC.findall(rule["expr"])) <= exposed | OF_OTHERS, rule
        assert set(RECORDED.findall(rule["expr"])) <= recorded, rule
        assert METRIC.findall(rule["expr"]) or RECORDED.findall(rule["expr"])


def names_of(family: Any) -> set[str]:
    """The names of a metric's samples."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
    return {family.name + suffix for suffix in suffixes}


def test_each_alert_of_a_death_stands_in_the_table_of_measured_seconds() -> None:
    groups = yaml.safe_load((RULES_FOLDER / RULES).read_text())["groups"]
    [deaths] = [group for group in groups if group["name"] == "postback-deaths"]
    assert {rule["alert"] for rule in deaths["rules"]} | {"PostbackFiguresStale"} == {
        promised.split()[0] for promised in PROMISES
    }


def test_each_alert_has_a_runbook_section() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "OPERATIONS.md").read_text(), re.MULTILINE)
    anchors = {f"docs/OPERATIONS.md#{heading.lower()}" for heading in headings}

    assert {alert["annotations"]["runbook"] for alert in alerts().values()} == {
        anchor for anchor in anchors if "#postback" in anchor
    }
    for alert in alerts().values():
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in ("info", "warning", "critical")


# -- alerts that ring ----------------------------------------------------------------------------------------------

SECONDS = 180.0
WITHOUT_WORKERS = {
    "PostbackCertificateExpires",
    "PostbackClockSkew",
    "PostbackDeadlineNear",
    "PostbackNoWorker",
    "PostbackStoreDiskFull",
}
WITH_A_GONE_ENDPOINT = {"PostbackCallbacksFail", "PostbackDeadLettersGrow", "PostbackEndpointsDisabled"}
EVENTS = 40
"""Number of callbacks that the endpoint refuses; more than ten dead letters an hour raise an alert."""
DELIVERED = 10 * EVENTS
"""Number of later callbacks: enough that more than four fifths of all attempts succeed again."""


@pytest.mark.broker
@pytest.mark.timeout(900)
def test_alerts_of_a_sick_fleet_arrive_at_a_webhook_and_the_runbooks_commands_resolve_them(
    product: Product, tmp_path: Path
) -> None:
    notified, by_hand = set[tuple[str, str]](), Metrics()

    def wait_for(names: set[str], status: str) -> None:
        wanted = {(name, status) for name in names}
        eventually(lambda: wanted <= notified, SECONDS, lambda: f"of {sorted(wanted)} only {sorted(notified)}")

    with ExitStack() as stack:
        authority, gateway = certified_gateway(product, tmp_path)
        health = stack.enter_context(HealthServer(by_hand, lambda: READY))
        hook = stack.enter_context(webhook(notified))
        delivery, exporter = product.deliver("d1"), product.exporter("e1", POSTBACK_EXPORTER__INTERVAL_SECONDS="0.2")
        gateway.wait_until_ready()
        ports = {
            "postback-gateway": [gateway.role.port],
            "postback-delivery": [delivery.port],
            "postback-exporter": [exporter.port],
            "set-by-hand": [health.port],
        }
        prometheus = stack.enter_context(monitoring(tmp_path, ports, hook))
        wait_for_health(prometheus)

        set_by_hand(by_hand, skew_seconds=40, free_bytes=20)
        product.callbacks.up(Behaviour(status=410))
        job = {"prompt": "Why?", "callback_url": product.callbacks.url}
        product.submit([{**job, "ttl_seconds": 59}, *[job] * (EVENTS - 1)])
        wait_for(WITHOUT_WORKERS, "firing")
        product.worker("w1")
        wait_for(WITH_A_GONE_ENDPOINT, "firing")

        set_by_hand(by_hand, skew_seconds=0, free_bytes=600)
        run(product, "certs", "renew", str(authority), "127.0.0.1")
        product.callbacks.up()
        run(product, "endpoints", "enable", product.callbacks.url)
        run(product, "dead-letters", "redrive", "--endpoint", product.callbacks.url, "--yes")
        product.submit([job] * DELIVERED)
        wait_for(WITHOUT_WORKERS | WITH_A_GONE_ENDPOINT, "resolved")
        product.wait_for_callbacks(EVENTS + DELIVERED, SECONDS)

    assert {name for name, _ in notified} == WITHOUT_WORKERS | WITH_A_GONE_ENDPOINT
    assert {repeated[-1].status for repeated in product.callbacks.events.values()} == {200}


def certified_gateway(product: Product, folder: Path) -> tuple[Path, Gateway]:
    """Start a gateway whose certificate has a tenth of its life left.

    Returns the authority's folder and the gateway.
    """
    directory = folder / "authority"
    then = NOW - timedelta(days=0.9 * LEAF_DAYS)
    init(directory, then)
    issued = issue(directory, Leaf.server("127.0.0.1"), then)
    return directory, start_gateway(product, "--tls-cert", issued.certificate, "--tls-key", issued.key)


def wait_for_health(prometheus: Prometheus) -> None:
    """Wait until Prometheus has scraped the healthy fleet, because `delta` and `rate` need this earlier sample."""
    earlier = ("postback_open_dead_letters", "postback_callbacks_total", "postback_disabled_endpoints")
    eventually(
        lambda: all(prometheus.values(f"{name} == 0", 60) for name in earlier), SECONDS, "the healthy fleet is not seen"
    )


def set_by_hand(metrics: Metrics, *, skew_seconds: float, free_bytes: float) -> None:
    """Set the gauges of a process's clock, and of a disk whose size is 1000 bytes."""
    metrics.clock_seconds.set_function(lambda: SystemClock().time() + skew_seconds)
    metrics.store_disk_bytes.labels("database").set(1000)
    metrics.store_free_bytes.labels("database").set(free_bytes)


def run(product: Product, *command: str) -> None:
    """Run a command of the runbook on the fleet."""
    done = postback(*command, env=environment_of(product.kafka))
    assert done.returncode == 0, done.stderr


@contextmanager
def webhook(notified: set[tuple[str, str]]) -> Iterator[str]:
    """An operator's webhook, which keeps each alert's name and state."""

    class Handler(Answering):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            notified.update((alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"])
            self.answer(200)

    with handling(Handler) as url:
        yield f"{url}/"


@contextmanager
def monitoring(folder: Path, ports: dict[str, list[int]], hook: str) -> Iterator[Prometheus]:
    """Run Alertmanager, and Prometheus with the delivered rules; each rule's `for` is 3 s instead of minutes."""
    rules = (ROOT / "helm" / "postback" / "files" / "prometheus" / "postback.rules.yml").read_text()
    (folder / "rules.yml").write_text(re.sub(r"\bfor: \d+m", "for: 3s", rules))
    receiver = {"name": "operator", "webhook_configs": [{"url": hook, "send_resolved": True}]}
    route = {"receiver": "operator", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"}
    (folder / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": [receiver]}))
    address = f"127.0.0.1:{free_port()}"
    command = alertmanager(
        "--config.file=alertmanager.yml",
        "--storage.path=manager",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    )
    with ExitStack() as stack:
        log = stack.enter_context((folder / "alertmanager.log").open("wb"))
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(process.wait, 60)
        stack.callback(process.terminate)
        alerting = {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]}
        yield stack.enter_context(scraping(folder, ports, rule_files=["rules.yml"], alerting=alerting))


# -- the first dead letter of a reason: its series must have been 0 before -----------------------------------------


@pytest.mark.broker
@pytest.mark.timeout(600)
def test_a_panel_counts_the_first_dead_letter_of_a_job_and_the_first_of_a_callback(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    [query] = panels_with_queries()["fleet", "Dead letters by reason"]
    worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    eventually(lambda: worker.ready()[0], SECONDS, worker.said)
    with scraping(tmp_path, {"postback-worker": [worker.port]}) as prometheus:
        eventually(
            lambda: any(len(scrapes) > 2 for scrapes in prometheus.values("up == 1", 60)),
            SECONDS,
            "Prometheus does not scrape",
        )
        fleet_here.put([b"no job"])
        fleet_here.put([b"no result"], [("callback-url", b"https://example.com/")], fleet_here.kafka.topics.results)

        def counted(reason: str) -> bool:
            selected = query.replace("postback_dead_letters_total", f'postback_dead_letters_total{{reason="{reason}"}}')
            assert selected != query
            return any(rate > 0 for rates in prometheus.values(selected, 60) for rate in rates)

        for reason in ("rejected", "unusable_result"):
            eventually(partial(counted, reason), SECONDS, f"the panel shows no dead letter with the reason {reason}")


# -- dashboards: they come from their script -----------------------------------------------------------------------

NAMES = ("delivery", "engine", "enrichment", "fleet", "gateway", "kafka", "rollout")
LABEL = re.compile(r"\{\{(\w+)\}\}")
OF_EACH_SERIES = {"instance", "job"}
"""Labels that Prometheus adds to each series."""
JOBS = (ROOT / "helm" / "postback" / "files" / "prometheus" / "prometheus.yml").read_text()
"""Prometheus's configuration, which names the jobs."""


def panels(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DASHBOARDS / f"{name}.json").read_text())["panels"]
    return found


def targets(name: str) -> list[dict[str, Any]]:
    """The queries of a dashboard, with variables filled in as Grafana fills them."""
    return [
        {**target, "expr": target["expr"].replace("$__rate_interval", "1m")}
        for panel in panels(name)
        for target in panel["targets"]
    ]


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric's labels, and its description, which names the values of labels with few values."""

    labels: set[str]
    text: str


def declared() -> dict[str, Declared]:
    """Map each sample's name to the labels and the description that the program declares."""
    metrics = [metric for metric in vars(Metrics()).values() if hasattr(metric, "_labelnames")]
    ours = {
        sample: Declared({*metric._labelnames, *OF_EACH_SERIES}, family.documentation)
        for metric in metrics
        for family in metric.describe()
        for sample in names_of(family)
    }
    buckets = {name: replace(has, labels={*has.labels, "le"}) for name, has in ours.items() if name.endswith("_bucket")}
    return {**ours, **buckets, **dict.fromkeys(OF_OTHERS, Declared({"gpu", *OF_EACH_SERIES}, ""))}


def test_the_files_are_those_that_the_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DASHBOARDS)  # when Python runs a script, it also adds the script's folder to the path
    written: dict[Path, str] = dashboards.documents()

    assert {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")} == {
        path.name: text for path, text in written.items()
    }, "run `python -m scripts.dashboards`"
    assert sorted(path.stem for path in written) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_query_asks_for_metrics_labels_and_values_that_the_program_has(name: str) -> None:
    known = declared()
    for target in targets(name):
        asked = selectors(target["expr"])
        assert asked, target
        for selector in asked:
            assert selector.metric in known, target
            has = known[selector.metric]
            assert selector.values.keys() <= has.labels, target
            for label, value in selector.values.items():
                assert re.search(rf"\b{re.escape(value)}\b", JOBS if label == "job" else has.text), target


@pytest.mark.parametrize("name", NAMES)
def test_each_legend_shows_all_labels_that_its_query_keeps_and_no_others(name: str) -> None:
    for target in targets(name):
        kept = kept_labels(target["expr"])
        assert kept is not None, target
        assert set(LABEL.findall(target["legendFormat"])) == kept - {"le"}, target
        for selector in selectors(target["expr"]):
            assert kept <= declared()[selector.metric].labels, target


def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    queries = [target["expr"] for name in NAMES for target in targets(name)]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run(
        [promtool(), "check", "rules", file], capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_no_two_panels_of_a_dashboard_overlap_and_their_ids_differ(name: str) -> None:
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels(name)}
    assert len({panel["id"] for panel in panels(name)}) == len(places) == len(panels(name)) >= 7
    assert {panel["datasource"]["uid"] for panel in panels(name)} == {"${datasource}"}


# -- each panel on a real Prometheus -------------------------------------------------------------------------------

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


def panels_with_queries() -> dict[Panel, list[str]]:
    """The queries of each panel, with variables filled in as Grafana fills them."""
    dashboards = {file.stem: json.loads(file.read_text()) for file in DASHBOARDS.glob("*.json")}
    return {
        (name, panel["title"]): [each["expr"].replace("$__rate_interval", RATE_INTERVAL) for each in panel["targets"]]
        for name, dashboard in dashboards.items()
        for panel in dashboard["panels"]
    }


def test_every_panel_except_those_of_a_gpu_is_tested_below() -> None:
    assert panels_with_queries().keys() >= OF_VLLM | NOT_HERE.keys()
    assert len({title for _, title in panels_with_queries()}) > 50
    assert [query for queries in panels_with_queries().values() for query in queries if "$" in query] == []


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

        asked = panels_with_queries().keys() - OF_VLLM - NOT_HERE.keys()

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
    queries = panels_with_queries()
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
