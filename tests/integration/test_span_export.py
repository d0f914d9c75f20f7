"""Spans reach an OpenTelemetry collector where one is named, as parts of the trace that the record carried."""

from __future__ import annotations

import gzip
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from postback_command import environment_of

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
PROGRAM = f"""
from telemetry.traces import context_of, current_trace, set_up, span, with_context
flush = set_up("worker")
parent = context_of([("traceparent", b"00-{TRACE_ID}-{SPAN_ID}-01")])
with span("infer", parent, {{"job_id": "j1"}}) as context:
    assert current_trace() == context
    print(dict(with_context([], context))["traceparent"].decode())
flush()
"""


class Collector(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    requests: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_span_is_exported_as_a_child_of_the_records_trace() -> None:
    Collector.requests = []
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        env = environment_of(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60)
        server.shutdown()
        thread.join()
    assert (done.returncode, done.stderr) == (0, "")
    [request] = Collector.requests
    [resource] = request.resource_spans
    [span] = resource.scope_spans[0].spans
    names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert names["service.name"] == "worker"
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("infer", TRACE_ID, SPAN_ID)
    assert done.stdout.strip() == f"00-{TRACE_ID}-{span.span_id.hex()}-01"
