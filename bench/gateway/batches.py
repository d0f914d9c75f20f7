"""Measures a batch of 50,000 lines, from its upload to the last line of its output file, with the echo engine.

One gateway process, one worker, Kafka and this client share the machine's cores. The clock for the rate starts with the
request that creates the batch, and stops when the batch has ended and its output file is read.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests

from bench.fleet import START_SECONDS, Command, Kafka, broker, new_fleet, wait_for
from bench.gateway.running import PARTITIONS, Sizes, gateway_command, new_key, url_of
from bench.result import table, title, verdict

SHORT_LINE_BYTES = 300
GOAL = 5_000
GOAL_MIB = 50
MIB = 1024 * 1024
WAIT_SECONDS = 900.0
_STEPS = ("upload", "checked", "answered", "ended", "read")


def main(servers: str | None, sizes: Sizes) -> None:
    """Measure a file of short lines, for the rate, and a file of long lines, for the memory; print both."""
    title(f"A batch of {sizes.lines:,} lines over HTTP, engine echo, one gateway and one worker")
    with broker(servers) as used, TemporaryDirectory() as name:
        kafka, folder = new_fleet(used, PARTITIONS), Path(name)
        with gateway_command(kafka, folder) as gateway, Command(kafka, "worker", "--engine", "echo") as worker:
            wait_for(gateway.ready, START_SECONDS)
            wait_for(worker.ready, START_SECONDS)
            client = _Client(url_of(gateway), new_key(folder))
            client.run(_file(folder, min(1_000, sizes.lines), SHORT_LINE_BYTES))
            runs = [
                (size, _measured(gateway, worker, used, client, _file(folder, sizes.lines, size)))
                for size in (SHORT_LINE_BYTES, sizes.large_line_bytes)
            ]
    rows, costs = [], []
    for line_bytes, run in runs:
        times = [f"{run[step]:.1f}" for step in _STEPS]
        rows.append((f"{line_bytes} bytes", f"{run['rate']:,.0f}", *times, f"{run['idle']:.0f}", f"{run['peak']:.0f}"))
        costs.append((f"{line_bytes} bytes", *(f"{run[name] / sizes.lines * 1e6:.0f}" for name in _SPENDERS)))
    table(("a line", "lines/s", *(f"{step} s" for step in _STEPS), "MiB idle", "MiB at most"), rows)
    table(("µs of CPU for a line of", *_SPENDERS), costs)
    (_, short), (_, large) = runs
    verdict("lines/s from create to the last output line", short["rate"], GOAL, at_least=True)
    verdict("memory over idle, large lines", large["peak"] - large["idle"], GOAL_MIB, at_least=False, unit=" MiB")


_SPENDERS = ("gateway", "worker", "Kafka", "client")


def _spent(gateway: Command, worker: Command, used: Kafka) -> list[float]:
    """Return the seconds of CPU that each of _SPENDERS has used so far."""
    return [gateway.cpu_seconds(), worker.cpu_seconds(), used.cpu_seconds(), time.process_time()]


def _measured(gateway: Command, worker: Command, used: Kafka, client: _Client, file: Path) -> dict[str, float]:
    """Run one batch, and watch the gateway's memory. Times are seconds from the request that creates the batch."""
    idle, before = gateway.rss_bytes() / MIB, _spent(gateway, worker, used)
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
    spent = (after - start for after, start in zip(_spent(gateway, worker, used), before, strict=True))
    return {**run, **dict(zip(_SPENDERS, spent, strict=True)), "idle": idle, "peak": max(peaks)}


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
