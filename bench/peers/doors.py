"""Compares the front doors that accept requests by HTTP: `python -m bench.peers.doors`.

Postback's gateway accepts jobs (`POST /v1/jobs`), with a SQLite of full durability. LiteLLM's proxy answers chat
completions with the text of `mock_response`, so that no engine takes part. Both serve over TLS and know the caller by a
key, and take turns on the same cores as the client.

LiteLLM has the settings that its page "Best practices for production" names: a worker process a core, no log lines of
requests, a master key, and no database, which it would only need for keys and spending.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import psutil

from bench.fleet import START_SECONDS, broker, new_fleet, wait_for
from bench.gateway.accepting import Measurable, Side, job_requests
from bench.gateway.load import request
from bench.gateway.running import PARTITIONS, Sizes, gateway_command, new_certificate, new_key, url_of
from bench.peers import NONE, installed, with_best
from bench.result import figure, parsed, samples, table, title, verdict
from cli.devkit.kafka.cluster import free_ports

PACKAGES = ("litellm[proxy]==1.105.7",)
MASTER_KEY = "sk-of-the-bench"
REST_SECONDS = 3.0
LITELLM_SECONDS = 600.0
"""LiteLLM's imports take ten seconds of CPU in each process."""
HEALTHCHECK_SECONDS = "120"
"""A worker that starts for longer is ended and started again; by default, 5 s are too few on a busy machine."""
_CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Describe the case on this page. ".ljust(300, "x")}]}
WITHOUT = (
    ("Celery, Dramatiq, arq, faststream, own loop", "they have no HTTP door: a program of the user accepts"),
    ("vllm serve", "its door is part of the engine; Time to the first token compares it"),
    ("Svix", "its server is in no registry of packages, and it accepts events, no jobs"),
)
"""Systems without this question, and the reason."""


class _Processes(Measurable):
    """A server's processes."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root

    def family(self) -> list[psutil.Process]:
        """Return the first process and all below it."""
        return [self._root, *self._root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return user and system seconds so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self.family())

    def idle_mb(self) -> float:
        """Return the proportional memory, in which shared pages count once."""
        return sum(each.memory_full_info().pss for each in self.family()) / 1e6


def main() -> None:
    """Measure both doors in turns, and print the table."""
    options = _options()
    sizes = Sizes(slices=options.slices, slice_seconds=options.slice_seconds, connections=options.connections)
    title(f"Requests accepted over TLS on {sizes.connections} connections")
    with broker(options.bootstrap_servers) as used, TemporaryDirectory() as name:
        folder, kafka = Path(name), new_fleet(used, PARTITIONS)
        certificate = new_certificate(folder / "certificates")
        tls = ssl.create_default_context(cafile=str(certificate.with_name("ca.pem")))
        with (
            gateway_command(kafka, folder, certificate) as gateway,
            litellm(folder, certificate, tls, options.workers) as (port, process),
        ):
            wait_for(gateway.ready, START_SECONDS)
            chat = request("POST", "/v1/chat/completions", MASTER_KEY, json.dumps(_CHAT).encode())
            own, other = _Processes(gateway.process), _Processes(process)
            ours = Side(int(url_of(gateway).rsplit(":", 1)[1]), tls, own, job_requests(new_key(folder)))
            theirs = Side(port, tls, other, lambda: chat, status=200)
            time.sleep(REST_SECONDS)
            idle = own.idle_mb(), other.idle_mb()
            for _ in range(sizes.slices + 1):
                theirs.measure(sizes)
                ours.measure(sizes)
                wait_for(lambda: gateway.sample()["postback_outbox_records"] == 0, START_SECONDS, 1.2)
    _report(ours, theirs, idle)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=6, help="turns of each door")
    parser.add_argument("--slice-seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="LiteLLM's worker processes")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _report(ours: Side, theirs: Side, idle: tuple[float, float]) -> None:
    sides = (
        ("LiteLLM's proxy", theirs, idle[1], NONE),
        ("Postback's gateway", ours, idle[0], "yes, before the answer"),
    )
    rows = [
        (name, f"{side.rate:,.0f}", f"{side.cpu * 1e6:,.0f}", f"{idle_mb:,.0f}", kept)
        for name, side, idle_mb, kept in sides
    ]
    without = [[name, *[NONE] * 4] for name, _ in WITHOUT]
    head = ("door", "requests/s", "CPU µs a request", "idle MB", "keeps what it accepted")
    table(head, with_best(rows, (None, 1, -1, -1, None)) + without)
    table((NONE, "reason"), (("LiteLLM keeps what it accepted", "it answers while the caller waits"), *WITHOUT))
    for name, side, _, _ in sides:
        samples(f"{name}, requests/s", side.rates)
    verdict("Postback's accepted jobs/s / LiteLLM's answers/s", ours.rate / theirs.rate, 1.0, at_least=True)
    figure("CPU of a request: Postback, LiteLLM", f"{ours.cpu * 1e6:,.0f}, {theirs.cpu * 1e6:,.0f} µs")


@contextmanager
def litellm(folder: Path, certificate: Path, tls: ssl.SSLContext, workers: int) -> Iterator[tuple[int, psutil.Process]]:
    """Yield the port and the process of LiteLLM's proxy. Raises RuntimeError if it ends."""
    programs = installed("litellm", PACKAGES)
    answering = {"model": "openai/echo", "api_key": "none", "mock_response": "The page describes the case."}
    settings = {
        "model_list": [{"model_name": "echo", "litellm_params": answering}],
        "litellm_settings": {"set_verbose": False, "num_retries": 0, "request_timeout": 600},
        "general_settings": {"master_key": MASTER_KEY, "disable_spend_logs": True},
    }
    config, log, [port] = folder / "litellm.yaml", folder / "litellm.log", free_ports(1)
    config.write_text(json.dumps(settings))  # JSON is YAML
    command = [
        *(str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", str(workers), "--timeout_worker_healthcheck", HEALTHCHECK_SECONDS),
        *("--ssl_certfile_path", str(certificate), "--ssl_keyfile_path", str(certificate.with_suffix(".key"))),
    ]
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the map of prices comes from the package, and from no server
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )

    def serves() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"LiteLLM ended: {log.read_text()[-2000:]}")
        try:
            with urlopen(f"https://127.0.0.1:{port}/health/liveliness", timeout=10, context=tls) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_for(serves, LITELLM_SECONDS)
        yield port, psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()
