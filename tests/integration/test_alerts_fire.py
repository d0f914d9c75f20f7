"""Alerts on their whole way: a fleet of real processes that is ill, Prometheus, Alertmanager, an operator's webhook.

The runbook's commands mend the fleet, and each alert is resolved. Two gauges are set by hand, since no test can set the
clock of a single worker, or fill a disk of this machine.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from cli.devkit.receiver import Behaviour
from cli.operations.certificates import LEAF_DAYS, Leaf, init, issue
from scripts.publish.reference import ROOT
from telemetry.health import READY, HealthServer
from telemetry.metrics import Metrics
from tests.http_handler import Answering, handling
from tests.integration.gateway.gateway_process import Gateway, start_gateway
from tests.integration.test_certs_command import NOW
from tests.postback_command import environment_of, postback
from tests.product import Product, eventually
from tests.prometheus_tools import Prometheus, alertmanager, free_port, scraping

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

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
    """Set the gauges of a worker's clock, and of a disk whose size is 1000 bytes."""
    metrics.worker_clock_skew.labels("ahead").set(skew_seconds)
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
