"""Spans of a job's whole path reach a real OpenTelemetry collector, and each has its parent there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cli.devkit.receiver import Behaviour
from tests.http_handler import Answering, handling
from tests.integration.gateway.gateway_process import running_gateway
from tests.otel_collector import OtelCollector, running_collector
from tests.postback_command import environment_of, postback
from tests.product import Product, eventually
from tests.prometheus_tools import scraping

# The first test builds the collector, which takes minutes.
pytestmark = [pytest.mark.broker, pytest.mark.timeout(1_800)]

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
    ("worker", "search"),
    ("worker", "settle"),
}
"""Service and name of each span of a job that searches and reads a page, and whose first callback fails."""
PHASES = {"queued", "enrich", "infer", "deliver"}
"""The phases whose seconds have exemplars."""
OTHERS = {"postback_callback_age_seconds", "postback_http_request_seconds"}
"""Further histograms with exemplars."""


@contextmanager
def site() -> Iterator[str]:
    """A web server with pages below one path, and a SearXNG that finds one of them. Yields the server's URL."""

    class Handler(Answering):
        def do_GET(self) -> None:
            if self.path.startswith("/search?"):
                found = {"url": f"http://{self.headers['Host']}/{HUSH}/found", "title": HUSH, "content": HUSH}
                self.answer_json(200, {"results": [found], "unresponsive_engines": []})
            elif self.path.startswith(f"/{HUSH}/"):
                self.answer(200, PAGE)
            else:
                self.send_error(404)

    with handling(Handler) as url:
        yield url


def spans_by_job(collector: OtelCollector, job_id: str) -> set[tuple[str, str]]:
    """Service and name of each span in the job's trace."""
    [trace] = {span.trace_id for span in collector.spans if span.attributes.get("job_id") == job_id}
    return {(span.service, span.name) for span in collector.spans if span.trace_id == trace}


def test_a_sampled_job_is_one_trace_from_producer_to_callback_and_no_span_is_an_orphan(product: Product) -> None:
    product.callbacks.up(Behaviour(fail_first=1))
    with running_collector(product.folder) as collector, site() as web:
        setting = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
            "POSTBACK_SEARCH__SEARXNG__BASE_URL": web,
        }
        worker, deliver = product.worker("w1", **setting), product.deliver("d1", **setting)
        # Each job reads a page of its own, which is in no cache yet.
        jobs = {
            name: {
                "job_id": name,
                "prompt": f"What is glass? {HUSH}",
                "callback_url": product.callbacks.url,
                "sources": {
                    "urls": [f"{web}/{HUSH}/{name}"],
                    "search": {"provider": "searxng", "query": f"glass {HUSH}"},
                },
            }
            for name in ("by-kafka", "by-command", "by-gateway")
        }
        with running_gateway(product, **setting) as gateway:
            env = {**gateway.environment(), **setting, "POSTBACK_GATEWAY_KEY": gateway.key("default")}
            product.submit([jobs["by-kafka"]])
            for name, options in (("by-command", ()), ("by-gateway", ("--gateway", gateway.url))):
                sent = postback("submit", "-", *options, env=env, given=json.dumps(jobs[name]).encode())
                assert sent.returncode == 0, sent.stderr
            # The producer's sampler decides for the whole path, so this job has no spans.
            sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
            left_out = {**jobs["by-command"], "job_id": "left-out"}
            sent = postback("submit", "-", env={**env, **sampler}, given=json.dumps(left_out).encode())
            assert sent.returncode == 0, sent.stderr
            product.wait_for_callbacks(4, 120)
            exemplars = scraped_exemplars(product, worker.port, deliver.port, gateway.role.port)
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
    assert {span.attributes["provider"] for span in spans if span.name == "search"} == {"searxng"}
    assert set(exemplars) == PHASES | OTHERS
    assert set().union(*exemplars.values()) <= {span.trace_id for span in spans}


def scraped_exemplars(product: Product, *ports: int) -> dict[str, set[str]]:
    """Return the traces that a Prometheus with exemplars links to each phase of jobs, and to further histograms."""
    with scraping(product.folder, {"postback": ports}) as prometheus:

        def found() -> dict[str, set[str]]:
            linked: dict[str, set[str]] = {}
            for histogram in ("postback_job_seconds", *OTHERS):
                for labels, trace in prometheus.exemplars(histogram):
                    linked.setdefault(labels.get("phase", histogram), set()).add(trace)
            return linked

        eventually(lambda: found().keys() >= PHASES | OTHERS, 60, lambda: f"only {found()}")
        return found()


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
