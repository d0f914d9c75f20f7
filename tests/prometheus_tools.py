"""Prometheus with `promtool`, and Alertmanager: Debian's packages, unpacked into a cache. No service is started.

`with scraping(folder, {"postback-worker": [worker.port]}) as prometheus` runs a server that scrapes each second;
`prometheus.values("sum(postback_in_flight)", 60)` asks it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import requests

from telemetry.clock import SystemClock
from tests.debian_package import unpacked
from tests.product import eventually

_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def values(self, query: str, seconds: float) -> list[list[float]]:
        """Return the numbers of each series of the query in the last seconds, one number a second, without NaN."""
        now = SystemClock().time()
        asked: dict[str, str | float] = {"query": query, "start": now - seconds, "end": now, "step": 1.0}
        answer = requests.get(f"{self.url}/api/v1/query_range", params=asked, timeout=60)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        found = answer.json()["data"]["result"]
        numbers = [[float(value) for _, value in series["values"]] for series in found]
        return [finite for series in numbers if (finite := [one for one in series if math.isfinite(one)])]

    def exemplars(self, histogram: str) -> list[tuple[dict[str, str], str]]:
        """The series' labels and the trace's id of each exemplar of a histogram."""
        asked: dict[str, str | float] = {"query": f"{histogram}_bucket", "start": 0, "end": SystemClock().time()}
        answer = requests.get(f"{self.url}/api/v1/query_exemplars", params=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        return [
            (series["seriesLabels"], one["labels"]["trace_id"])
            for series in answer.json()["data"]
            for one in series["exemplars"]
        ]


@contextmanager
def scraping(folder: Path, targets: Mapping[str, Iterable[int]], **more: Any) -> Iterator[Prometheus]:
    """Run Prometheus in a folder for a block. `targets` are ports of this machine, by the name of their job.

    Prometheus scrapes each port and evaluates its rules every second. `more` has further sections of its configuration.
    """
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{each}" for each in ports]}]}
            for name, ports in targets.items()
        ],
        **more,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    started = Prometheus(f"http://127.0.0.1:{port}")
    options = [
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([prometheus(), *options], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: _is_ready(started), _START_SECONDS, lambda: (folder / "prometheus.log").read_text()[-2000:])
        yield started
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """Return a port of this machine that no program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _is_ready(server: Prometheus) -> bool:
    try:
        return requests.get(f"{server.url}/-/ready", timeout=10).ok
    except requests.ConnectionError:
        return False


@cache
def promtool() -> Path:
    """Return the path of `promtool`."""
    if found := shutil.which("promtool"):
        return Path(found)
    return unpacked("prometheus") / "usr" / "bin" / "promtool"


def amtool() -> Path:
    """Return the path of `amtool`, which checks Alertmanager's configuration."""
    return unpacked("prometheus-alertmanager") / "usr" / "bin" / "amtool"


def prometheus() -> Path:
    """Return the path of the server."""
    return unpacked("prometheus") / "usr" / "bin" / "prometheus"


def alertmanager(*arguments: str) -> list[str | Path]:
    """Return the command that runs Alertmanager.

    Debian's Alertmanager reads templates in /usr/share, so it gets its unpacked folder mounted there.
    """
    root = unpacked("prometheus-alertmanager")
    namespace = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    bound = 'mount --bind "$1" /usr/share && shift && exec "$@"'
    program = root / "usr" / "bin" / "prometheus-alertmanager"
    return ["unshare", *namespace, "sh", "-c", bound, "sh", root / "usr" / "share", program, *arguments]
