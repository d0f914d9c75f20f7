"""Spans reach a configured OpenTelemetry collector, as parts of the record's trace."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.postback_command import environment_of
from tests.product import Product

pytestmark = pytest.mark.broker

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


@dataclass
class Collector:
    """A collector that keeps posted spans: (service, span name, trace id, parent's id)."""

    url: str = ""
    spans: list[tuple[str, str, str, str]] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            self.spans += [
                (names["service.name"], span.name, span.trace_id.hex(), span.parent_span_id.hex())
                for scope in resource.scope_spans
                for span in scope.spans
            ]


@contextmanager
def collector() -> Iterator[Collector]:
    collected = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collected.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        collected.url = f"http://127.0.0.1:{server.server_port}"
        yield collected
        server.shutdown()
        thread.join()


def test_a_jobs_way_through_both_processes_is_one_trace(product: Product) -> None:
    product.callbacks.up()
    with collector() as collected:
        setting = {"OTEL_EXPORTER_OTLP_ENDPOINT": collected.url}
        roles = [product.worker("w1", **setting), product.deliver("d1", **setting)]
        job = b'{"prompt": "hello", "callback_url": "%s", "sources": {"urls": ["http://127.0.0.1:1/"]}}'
        product.put([job % product.callbacks.url.encode()], [("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01".encode())])
        product.wait_for_callbacks(1, 60)
        assert [role.terminate() for role in roles] == [0, 0]  # the roles export remaining spans before they end

    of_job = [("worker", "enrich"), ("worker", "infer"), ("deliver", "POST callback")]
    assert sorted(collected.spans) == sorted((*each, TRACE_ID, SPAN_ID) for each in of_job)
    [callback] = product.callbacks.received
    assert callback.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert SPAN_ID not in callback.headers["traceparent"]  # the receiver's parent is the POST's own span


def test_a_collector_that_is_away_costs_a_worker_neither_its_jobs_nor_its_exit(product: Product) -> None:
    worker = product.worker("w1", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    product.submit([{"prompt": "hello"}])
    product.wait_for_results(1, 60)
    assert worker.terminate() == 0


ONE_SPAN = """
from telemetry.traces import set_up, span
flush = set_up("worker")
with span("infer"):
    pass
flush()
"""


def test_a_collector_that_never_answers_does_not_hold_up_the_end_of_a_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        env = environment_of(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_EXPORTER_OTLP_TIMEOUT="600")
        done = subprocess.run([sys.executable, "-c", ONE_SPAN], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
