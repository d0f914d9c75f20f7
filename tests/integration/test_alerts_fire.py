"""Alerts on their whole way: metrics of a process, Prometheus, Alertmanager, an operator's webhook.

The test sets the gauges itself; no fleet is really ill.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from console.publish import ROOT
from telemetry.clock import SystemClock
from telemetry.health import READY, HealthServer
from telemetry.metrics import Metrics
from tests.http_handler import handling
from tests.product import eventually
from tests.prometheus_tools import alertmanager, prometheus

WANTED = {
    "PostbackCertificateExpires",
    "PostbackClockSkew",
    "PostbackDeadlineNear",
    "PostbackNoWorker",
    "PostbackStoreDiskFull",
}


def test_five_alerts_arrive_at_a_webhook_and_are_resolved(tmp_path: Path) -> None:
    metrics, notified = sick_fleet(), set[tuple[str, str]]()
    with ExitStack() as stack:
        health = stack.enter_context(HealthServer(metrics, lambda: READY))
        hook, ports = stack.enter_context(webhook(notified)), [free_port(), free_port()]
        stack.enter_context(monitoring(tmp_path, health.port, hook, *ports))
        firing = {(name, "firing") for name in WANTED}
        eventually(lambda: firing <= notified, 120, lambda: f"{sorted(notified)}\n{logs(tmp_path)}")
        mend(metrics)
        resolved = {(name, "resolved") for name in WANTED}
        eventually(lambda: resolved <= notified, 120, lambda: f"{sorted(notified)}\n{logs(tmp_path)}")

    assert {name for name, _ in notified} == WANTED


def sick_fleet() -> Metrics:
    """Metrics of a fleet with five faults, and a certificate whose renewal is overdue."""
    metrics = Metrics()
    metrics.figures_timestamp_seconds.set(SystemClock().time() + 3600)
    metrics.waiting_jobs.labels("").set(12)
    metrics.workers.labels("").set(0)
    metrics.tightest_deadline_seconds.labels("").set(-3)
    metrics.worker_clock_skew.labels("ahead").set(40)
    metrics.store_disk_bytes.labels("database").set(1000)
    metrics.store_free_bytes.labels("database").set(20)
    now = SystemClock().time()
    metrics.certificate_begin.labels("certificate").set(now - 3600)
    metrics.certificate_end.labels("certificate").set(now + 60)
    return metrics


def mend(metrics: Metrics) -> None:
    """End the five faults."""
    metrics.workers.labels("").set(2)
    metrics.tightest_deadline_seconds.labels("").set(900)
    metrics.worker_clock_skew.labels("ahead").set(0)
    metrics.store_free_bytes.labels("database").set(600)
    metrics.certificate_end.labels("certificate").set(SystemClock().time() + 86_400)


@contextmanager
def webhook(notified: set[tuple[str, str]]) -> Iterator[str]:
    """An operator's webhook, which keeps each alert's name and state."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            notified.update((alert["labels"]["alertname"], alert["status"]) for alert in body["alerts"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with handling(Handler) as url:
        yield f"{url}/"


@contextmanager
def monitoring(folder: Path, scraped: int, hook: str, server: int, manager: int) -> Iterator[None]:
    """Prometheus with the delivered rules, but without their `for` times, and Alertmanager."""
    rules = (ROOT / "deploy" / "prometheus" / "postback.rules.yml").read_text()
    (folder / "rules.yml").write_text(re.sub(r"\bfor: \d+m", "for: 0s", rules))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "postback", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{manager}"]}]}]},
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    receiver = {"name": "operator", "webhook_configs": [{"url": hook, "send_resolved": True}]}
    route = {"receiver": "operator", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"}
    (folder / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": [receiver]}))
    commands: tuple[list[str | Path], ...] = (
        [
            prometheus(),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=tsdb",
            f"--web.listen-address=127.0.0.1:{server}",
        ],
        alertmanager(
            "--config.file=alertmanager.yml",
            "--storage.path=manager",
            f"--web.listen-address=127.0.0.1:{manager}",
            "--cluster.listen-address=",
        ),
    )
    with ExitStack() as stack:
        for name, command in zip(("prometheus", "alertmanager"), commands, strict=True):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
        yield


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-1500:] for path in folder.glob("*.log"))
