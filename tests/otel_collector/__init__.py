"""A real OpenTelemetry collector, built from its Go modules, and the spans that it wrote into a file.

The build takes about three minutes of one core, so it is kept in the user's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.go_tools import cache, go, one_build_at_a_time, run
from tests.product import eventually

VERSION, STABLE_VERSION = "v0.165.0", "v1.71.0"
"""The collector numbers its stable modules from 1; both versions are one release."""
MODULES = (
    f"github.com/open-telemetry/opentelemetry-collector-contrib/exporter/fileexporter@{VERSION}",
    f"go.opentelemetry.io/collector/otelcol@{VERSION}",
    f"go.opentelemetry.io/collector/receiver/otlpreceiver@{VERSION}",
    f"go.opentelemetry.io/collector/confmap/provider/fileprovider@{STABLE_VERSION}",
)
_FIX = "the Go module proxy has to be reachable (GOPROXY), or the collector already be in the cache"


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """A span as the collector wrote it."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first span of a trace."""
    attributes: dict[str, object]


@dataclass(frozen=True, slots=True)
class OtelCollector:
    """A running collector."""

    url: str
    """The value of OTEL_EXPORTER_OTLP_ENDPOINT."""
    file: Path

    @property
    def text(self) -> str:
        """Everything that the collector wrote, in complete lines."""
        written = self.file.read_text() if self.file.exists() else ""
        return written[: written.rfind("\n") + 1]

    @property
    def spans(self) -> list[CollectedSpan]:
        """All spans so far."""
        return [
            CollectedSpan(
                str(_plain(resource["resource"]["attributes"])["service.name"]),
                span["name"],
                span["traceId"],
                span["spanId"],
                span.get("parentSpanId", ""),
                _plain(span.get("attributes", [])),
            )
            for line in self.text.splitlines()
            for resource in json.loads(line)["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]


@contextmanager
def running_collector(folder: Path) -> Iterator[OtelCollector]:
    """A collector that listens on a free port of this machine, and writes into the folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    collector = OtelCollector(f"http://{address}", folder / "spans.jsonl")
    config = folder / "collector.json"
    pipeline = {"receivers": ["otlp"], "exporters": ["file"]}
    config.write_text(
        json.dumps(
            {
                "receivers": {"otlp": {"protocols": {"http": {"endpoint": address}}}},
                "exporters": {"file": {"path": str(collector.file)}},
                "service": {"pipelines": {"traces": pipeline}},
            }
        )
    )
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen([_executable(), "--config", config], stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: _listens(address), 60, lambda: (folder / "collector.log").read_text())
        yield collector
    finally:
        process.terminate()
        process.wait(60)


def _executable() -> Path:
    """The collector, built if this release of it is missing; fails the test if the build fails."""
    target = cache() / "bin" / f"otelcol@{VERSION}"
    if target.exists():
        return target  # skips the lock, which the build of another tool may hold
    with one_build_at_a_time(target.parent):
        if not target.exists():
            _build(target)
    return target


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        home, env = Path(folder), {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
        shutil.copy(Path(__file__).with_name("main.go"), home)
        for arguments in (
            ("mod", "init", "postback.test/otelcol"),
            ("get", *MODULES),
            ("build", "-trimpath", "-ldflags", "-s -w", "-o", "otelcol", "."),
        ):
            run([str(go()), *arguments], fix=_FIX, env=env, cwd=home)
        (home / "otelcol").replace(target)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


def _plain(attributes: list[dict[str, Any]]) -> dict[str, object]:
    """Return attributes in OTLP's JSON as plain values; 64-bit integers are texts there."""
    plain: dict[str, object] = {}
    for each in attributes:
        [(kind, value)] = each["value"].items()
        plain[each["key"]] = int(value) if kind == "intValue" else value
    return plain
