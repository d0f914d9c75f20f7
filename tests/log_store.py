"""VictoriaLogs, and Filebeat that ships log files to it with the configuration of `helm/postback/files/filebeat/`.

VictoriaLogs and Filebeat are built from their Go modules: no registry has them as packages. VictoriaLogs accepts
Elasticsearch's bulk requests.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import requests

from scripts.publish.reference import ROOT
from telemetry.clock import Deadline, SystemClock
from tests.go_tools import GoTool, ensure

VICTORIA_LOGS = GoTool("github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs", "v1.52.1")
FILEBEAT = GoTool(
    "github.com/elastic/beats/v7/filebeat",
    "v7.17.29",
    "github.com/elastic/beats/v7",
    (
        "github.com/Shopify/sarama => github.com/elastic/sarama v1.19.1-0.20210823122811-11c3ef800752",
        "github.com/docker/docker => github.com/docker/engine v0.0.0-20191113042239-ea84732a7725",
        "github.com/dop251/goja => github.com/andrewkroh/goja v0.0.0-20190128172624-dd2ac4456e20",
        "github.com/fsnotify/fsnotify => github.com/adriansr/fsnotify v1.4.8-0.20211018144411-a81f2b630e7c",
    ),
)
CONFIGURATION = ROOT / "helm" / "postback" / "files" / "filebeat"
_START_SECONDS = 60.0
_FIELDS = {"VL-Msg-Field": "message", "VL-Time-Field": "@timestamp", "VL-Stream-Fields": "service.name"}
_CLOCK = SystemClock()


class LogStore:
    """A context manager of a VictoriaLogs on a free loopback port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"

    def __enter__(self) -> LogStore:
        address = self.url.removeprefix("http://")
        self._process = subprocess.Popen(
            [ensure(VICTORIA_LOGS), f"-storageDataPath={self._folder}", f"-httpListenAddr={address}"],
            stderr=subprocess.DEVNULL,
        )
        deadline = Deadline.after(_CLOCK, _START_SECONDS)
        while not self._answers():
            assert not deadline.passed, "VictoriaLogs did not start"
            _CLOCK.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def found(self, query: str) -> list[dict[str, Any]]:
        """The lines of the last day that match this LogsQL query, by time. Each value is a text."""
        answer = requests.post(f"{self.url}/select/logsql/query", data={"query": f"_time:1d {query}"}, timeout=30)
        answer.raise_for_status()
        return sorted((json.loads(line) for line in answer.text.splitlines()), key=lambda line: str(line["_time"]))

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=5).ok
        except requests.ConnectionError:
            return False


def filebeat_command(folder: Path, *arguments: str) -> list[str]:
    """A Filebeat command line with our configuration, which keeps its state in this folder."""
    paths = ["--path.home", str(folder), "--path.data", str(folder / "data")]
    return [str(ensure(FILEBEAT)), *arguments, "-c", str(CONFIGURATION / "filebeat.yml"), *paths]


@contextmanager
def shipping(
    store: LogStore, folder: Path, *more: str, logs: str = "", audit: str = "", containers: str = ""
) -> Iterator[None]:
    """Run Filebeat over the files of these patterns, with more arguments."""
    files = {"POSTBACK_LOGS": logs, "POSTBACK_AUDIT": audit, "POSTBACK_CONTAINER_LOGS": containers}
    named = {name: pattern or f"{folder}/none" for name, pattern in files.items()}
    headers = [
        part for name, value in _FIELDS.items() for part in ("-E", f"output.elasticsearch.headers.{name}={value}")
    ]
    process = subprocess.Popen(
        filebeat_command(folder, "--strict.perms=false", *headers, *more),
        env={**os.environ, **named, "ELASTICSEARCH_URL": f"{store.url}/insert/elasticsearch"},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()
