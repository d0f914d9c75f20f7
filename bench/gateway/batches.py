"""A batch of 50,000 lines, from its upload to the last line of its output file, with an engine without cost.

One gateway process, one worker, Kafka and this client share the machine's cores. The clock of the rate starts with the
request that creates the batch, and stops when the batch has ended and its output file is read.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from bench.fleet import POSTBACK, START_SECONDS, Command, broker, new_fleet, wait_for
from bench.table import table, title, verdict
from schemas.settings import KafkaSettings

LINES = 50_000
LINE_BYTES = 4_100
"""200 MB in all, almost OpenAI's bound for a file."""
PARTITIONS = 12
GOAL = 5_000
GOAL_MIB = 50
MIB = 1024 * 1024
WAIT_SECONDS = 900.0


def main() -> None:
    """Measure a file of short lines, for the rate, and a large one, for the memory; print both."""
    title(f"A batch of {LINES:,} lines over HTTP, engine echo, one gateway and one worker")
    rows = []
    with broker(None) as used, TemporaryDirectory() as folder:
        kafka = new_fleet(used, PARTITIONS)
        with _gateway(kafka, Path(folder)) as gateway, Command(kafka, "worker", "--engine", "echo") as worker:
            wait_for(gateway.ready, START_SECONDS)
            wait_for(worker.ready, START_SECONDS)
            client = _Client(_url(gateway), _key(kafka, Path(folder)))
            client.run(_file(Path(folder), 1_000, 300))
            short = _measured(gateway, client, _file(Path(folder), LINES, 300))
            large = _measured(gateway, client, _file(Path(folder), LINES, LINE_BYTES))
    for name, run in (("300 bytes", short), (f"{LINE_BYTES} bytes", large)):
        times = [f"{run[step]:.1f}" for step in ("upload", "checked", "answered", "ended", "read")]
        rows.append((name, f"{run['rate']:,.0f}", *times, f"{run['idle']:.0f}", f"{run['peak']:.0f}"))
    steps = ("upload s", "checked s", "answered s", "ended s", "read s")
    table(("a line", "lines/s", *steps, "MiB idle", "MiB at most"), rows)
    verdict("lines/s from create to the last output line", short["rate"], GOAL, at_least=True)
    verdict("memory over idle, 200 MB", large["peak"] - large["idle"], GOAL_MIB, at_least=False, unit=" MiB")


def _measured(gateway: Command, client: _Client, file: Path) -> dict[str, float]:
    """Run one batch, and watch the gateway's memory. Times are seconds from the request that creates the batch."""
    idle = gateway.rss_bytes() / MIB
    peaks, done = [idle], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peaks.append(gateway.rss_bytes() / MIB)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run = client.run(file)
    finally:
        done.set()
        watcher.join()
    return {**run, "idle": idle, "peak": max(peaks)}


class _Client:
    """A client of one tenant."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.headers["authorization"] = f"Bearer {key}"

    def run(self, file: Path) -> dict[str, float]:
        """Upload, create, poll and read a batch. Raises RuntimeError unless every line is answered."""
        began = time.monotonic()
        boundary = "postback-bench"
        form = {"content-type": f"multipart/form-data; boundary={boundary}"}
        file_id = self._post("files", data=_form(file, boundary), headers=form)["id"]
        created = time.monotonic()
        said = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = self._post("batches", json=said)
        times: dict[str, float] = {}
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            if time.monotonic() - created > WAIT_SECONDS:
                raise RuntimeError(f"the batch does not end: {batch}")
            time.sleep(0.1)
            batch = self._get(f"batches/{batch['id']}").json()
            if batch["status"] != "validating":
                times.setdefault("checked", time.monotonic() - created)
            if batch["status"] not in ("validating", "in_progress"):
                times.setdefault("answered", time.monotonic() - created)
        times["ended"] = time.monotonic() - created
        with self._get(f"files/{batch['output_file_id']}/content", stream=True) as content:
            lines = sum(piece.count(b"\n") for piece in content.iter_content(MIB))
        seconds = time.monotonic() - created
        if lines != batch["request_counts"]["completed"] or lines != batch["request_counts"]["total"]:
            raise RuntimeError(f"the output file has {lines} lines: {batch}")
        return {**times, "upload": created - began, "read": seconds, "rate": lines / seconds}

    def _post(self, path: str, **arguments: Any) -> dict[str, Any]:
        answer = self._session.post(f"{self._url}/v1/{path}", timeout=WAIT_SECONDS, **arguments)
        answer.raise_for_status()
        return dict(answer.json())

    def _get(self, path: str, **arguments: Any) -> requests.Response:
        answer = self._session.get(f"{self._url}/v1/{path}", timeout=WAIT_SECONDS, **arguments)
        answer.raise_for_status()
        return answer


def _form(file: Path, boundary: str) -> Iterator[bytes]:
    """Yield an upload's form, the file first and without a length, as Node's SDK sends it."""
    yield f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'.encode()
    with file.open("rb") as content:
        while piece := content.read(MIB):
            yield piece
    yield f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch'.encode()
    yield f"\r\n--{boundary}--\r\n".encode()


def _file(folder: Path, lines: int, line_bytes: int) -> Path:
    """Write an input file."""
    path = folder / f"{lines}-{line_bytes}.jsonl"
    with path.open("wb") as file:
        for number in range(lines):
            question = f"What does the page say of case {number}? "
            body = {"messages": [{"role": "user", "content": question.ljust(line_bytes - 160, "x")}]}
            line = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line).encode() + b"\n")
    return path


def _gateway(kafka: KafkaSettings, folder: Path) -> Command:
    store = f"sqlite:///{folder}/store.db"
    return Command(kafka, "gateway", "--port", "0", POSTBACK_STORE__URL=store, POSTBACK_REPLICA="door")


def _url(gateway: Command) -> str:
    return next(line for line in gateway.output().split() if line.startswith("http://") and line.endswith("/v1"))[:-3]


def _key(kafka: KafkaSettings, folder: Path) -> str:
    command = [
        str(POSTBACK),
        "api-keys",
        "create",
        "--tenant",
        "bench",
        "--json",
        "--store",
        f"sqlite:///{folder}/store.db",
    ]
    made = subprocess.run(command, capture_output=True, check=True, text=True)
    return str(json.loads(made.stdout)["key"])
