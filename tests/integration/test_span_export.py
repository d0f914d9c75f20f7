"""Spans of a job's whole path reach a real OpenTelemetry collector, and each has its parent there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.request import Request, urlopen

import pytest

from devkit.receiver import Behaviour
from tests.http_handler import handling
from tests.integration.gateway.gateway_process import gateway_process
from tests.otel_collector import OtelCollector, running_collector
from tests.postback_command import environment_of, postback
from tests.product import Product

pytestmark = pytest.mark.broker

HUSH = "hush"
"""A part of each prompt, answer, and path that no span may have."""
PAGE = f"<html><title>Glass</title><p>Glass is made of sand, soda and lime. {HUSH}</p></html>".encode()

OF_A_JOB = {
    ("deliver", "POST callback"),
    ("deliver", "settle"),
    ("worker", "enrich"),
    ("worker", "fetch"),
    ("worker", "infer"),
    ("worker", "queued"),
    ("worker", "settle"),
}
"""The spans of a job that reads a page, and whose first callback fails, by service and name."""


@contextmanager
def site() -> Iterator[str]:
    """A web server with one page. Yields the page's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_page = HUSH in self.path
            self.send_response(200 if is_page else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE) if is_page else 0))
            self.end_headers()
            self.wfile.write(PAGE if is_page else b"")

        def log_message(self, *args: object) -> None:
            pass

    with handling(Handler) as url:
        yield f"{url}/{HUSH}/"


def spans_by_job(collector: OtelCollector, job_id: str) -> set[tuple[str, str]]:
    """Service and name of each span in the job's trace."""
    [trace] = {span.trace_id for span in collector.spans if span.attributes.get("job_id") == job_id}
    return {(span.service, span.name) for span in collector.spans if span.trace_id == trace}


def test_a_sampled_job_is_one_trace_from_producer_to_callback_and_no_span_is_an_orphan(product: Product) -> None:
    product.callbacks.up(Behaviour(fail_first=1))
    with running_collector(product.folder) as collector, site() as page:
        setting = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
        }
        worker, deliver = product.worker("w1", **setting), product.deliver("d1", **setting)
        # Each job reads a page of its own, which no cache has.
        jobs = {
            name: {
                "job_id": name,
                "prompt": f"What is glass? {HUSH}",
                "callback_url": product.callbacks.url,
                "sources": {"urls": [f"{page}{name}"]},
            }
            for name in ("by-kafka", "by-command", "by-gateway")
        }
        with gateway_process(product, **setting) as gateway:
            env = {**gateway.environment(), **setting, "POSTBACK_GATEWAY_KEY": gateway.key("default")}
            product.submit([jobs["by-kafka"]])
            for name, options in (("by-command", ()), ("by-gateway", ("--gateway", gateway.url))):
                sent = postback("submit", "-", *options, env=env, given=json.dumps(jobs[name]).encode())
                assert sent.returncode == 0, sent.stderr
            # The producer's sampler decides for the whole path.
            sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
            left_out = {**jobs["by-command"], "job_id": "left-out"}
            sent = postback("submit", "-", env={**env, **sampler}, given=json.dumps(left_out).encode())
            assert sent.returncode == 0, sent.stderr
            product.wait_for_callbacks(4, 120)
            shown = metrics_with_exemplars(worker.port) + metrics_with_exemplars(deliver.port)
            # The roles export remaining spans before they end.
            assert [role.terminate() for role in (worker, deliver, gateway.role)] == [0, 0, 0]
        spans, text = collector.spans, collector.text
        found = {name: spans_by_job(collector, name) for name in jobs}

    assert found == {
        "by-kafka": OF_A_JOB,
        "by-command": OF_A_JOB | {("submit", "submit")},
        "by-gateway": OF_A_JOB | {("gateway", "POST /v1/jobs"), ("gateway", "relay"), ("submit", "submit")},
    }
    assert {str(span.attributes.get("job_id", "")) for span in spans} == {"", *jobs}
    assert len({span.trace_id for span in spans if span.service != "gateway"}) == len(jobs)
    known = {span.span_id for span in spans}
    assert [span for span in spans if span.parent_id and span.parent_id not in known] == []
    posts = [span.attributes for span in spans if span.name == "POST callback"]
    tried = sorted((str(post["attempt"]), str(post["http.response.status_code"])) for post in posts)
    assert tried == 3 * [("1", "503")] + 3 * [("2", "200")]
    last = {name: one[-1].headers["traceparent"].split("-") for name, one in product.callbacks.events.items()}
    assert {last[name][2] for name in jobs} <= {span.span_id for span in spans if span.name == "POST callback"}
    assert last["left-out"][3] == "00"
    secrets = [secret.removeprefix("whsec_") for secret in product.keyring.secrets("default", 0)]
    assert [each for each in (HUSH, "token", env["POSTBACK_GATEWAY_KEY"], *secrets) if each in text] == []
    for phase in ("queued", "enrich", "infer", "deliver"):
        assert {line.split("trace_id=")[1][1:33] for line in shown if f'phase="{phase}"' in line} <= {
            span.trace_id for span in spans
        }, phase
        assert any(f'phase="{phase}"' in line for line in shown), phase


def metrics_with_exemplars(port: int) -> list[str]:
    """The lines of a process' metrics that have an exemplar, in the format that Prometheus asks for."""
    asked = Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text"})
    with urlopen(asked, timeout=30) as answer:
        return [line for line in answer.read().decode().splitlines() if "# {trace_id=" in line]


def test_a_collector_that_is_away_costs_a_worker_neither_its_jobs_nor_its_exit(product: Product) -> None:
    worker = product.worker("w1", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    product.submit([{"prompt": "hello"}])
    product.wait_for_results(1, 60)
    assert worker.terminate() == 0


ONE_SPAN = """
from telemetry.traces import exporting, span
with exporting("worker"), span("infer"):
    pass
"""


def test_a_collector_that_never_answers_does_not_hold_up_the_end_of_a_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        env = environment_of(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_EXPORTER_OTLP_TIMEOUT="600")
        done = subprocess.run([sys.executable, "-c", ONE_SPAN], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
