"""`postback dev` as its user runs it: one command, a first job, a kill, and a second start on the same folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from kafka import KafkaProducer

from cli.fleet.dev_start import DataRefused, ServerRefused, Wanted, reserved_ports, served_model
from cli.fleet.dev_system import Addresses, screen
from tests.integration.openai_http.servers import answers, lists
from tests.integration.openai_server import serving
from tests.postback_command import environment_of, postback_here, started

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900), pytest.mark.usefixtures("clean_processes")]


@contextmanager
def running(*arguments: str | Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `postback dev`, and kill it at the end if it still runs."""
    with started("dev", *arguments, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def addresses(process: subprocess.Popen[str]) -> dict[str, str]:
    """Read the line that `--json` prints when everything serves."""
    assert process.stdout is not None
    read: dict[str, str] = json.loads(process.stdout.readline())
    return read


def request(at: Mapping[str, str], path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Ask the gateway with the API key of the line."""
    headers = {"Authorization": f"Bearer {at['api_key']}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    asked = urllib.request.Request(f"{at['gateway_url']}/v1{path}", data=data, headers=headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)


def callback(process: subprocess.Popen[str], job_id: str) -> str:
    """Return the line that the receiver shows for this job's callback."""
    assert process.stderr is not None
    return next(line for line in process.stderr if job_id in line)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_jobs_come_back_verified_and_a_killed_system_starts_again_with_its_addresses_keys_and_results(
    tmp_path: Path,
) -> None:
    env, data = environment_of(TMPDIR=tmp_path), tmp_path / "data"
    with running("--json", "--data", data, env=env) as process:
        at = addresses(process)
        by_http = request(at, "/jobs", {"prompt": "over HTTP", "callback_url": at["receiver_url"]})
        assert "inference.succeeded  verified  answered 200" in callback(process, by_http["id"])
        job = {"job_id": "by-kafka", "prompt": "over Kafka", "callback_url": at["receiver_url"]}
        producer = KafkaProducer(bootstrap_servers=at["kafka"])
        producer.send("model_requests", json.dumps(job).encode())
        producer.close()
        assert "inference.succeeded  verified  answered 200" in callback(process, "by-kafka")
        children = family(process)
        process.kill()
        _, running_still = psutil.wait_procs(children, timeout=30)
        assert running_still == []
    assert (data / "api-key").stat().st_mode & 0o777 == 0o600

    with running("--json", "--data", data, env=env) as process:
        assert addresses(process) == at
        answered = request(at, f"/jobs/{by_http['id']}")
        assert (answered["status"], answered["result"]["text"]) == ("succeeded", "over HTTP")
        second = postback_here("dev", "--data", data, env=env)
        assert (second.returncode, second.stdout) == (1, "")
        assert (
            f"port {at['gateway_url'].rpartition(':')[2]}, which {data / 'ports.json'} keeps, is in use"
            in second.stderr
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert at["gateway_url"].startswith("http://127.0.0.1:")


def code_below(shown: Sequence[str], heading: str) -> str:
    """Return the lines between a heading of the screen and the next empty line."""
    start = next(number for number, line in enumerate(shown) if line.startswith(heading)) + 1
    return "\n".join(takewhile(bool, shown[start:]))


def test_the_screen_s_jobs_work_as_printed_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with running(env=environment_of(TMPDIR=tmp_path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "postback: starting everything, which takes up to a minute\n"
        shown = []
        for line in process.stdout:
            shown.append(line.rstrip("\n"))
            if "producer.flush()" in line:
                break
        assert shown, process.stderr.read()
        command = code_below(shown, "A job, by curl:")
        accepted = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        job_id = json.loads(accepted.stdout)["id"]
        assert any(job_id in line and "verified" in line for line in process.stdout)
        subprocess.run([sys.executable, "-c", code_below(shown, "By any Kafka client")], check=True)
        assert any(job_id not in line and "verified" in line for line in process.stdout)
        children = family(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        *_, last = process.stderr.read().splitlines()  # a starting Kafka may have been the subject of warnings before
        assert last == "postback: stopped; run with --data DIR to keep jobs, keys and addresses"
        assert psutil.wait_procs(children, timeout=30)[1] == []
    assert [path for path in tmp_path.iterdir() if path.name.startswith("postback-dev-")] == []


def test_sigterm_during_the_start_ends_all_with_status_0(tmp_path: Path) -> None:
    with running(env=environment_of(TMPDIR=tmp_path)) as process:
        while not family(process):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        children = family(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert psutil.wait_procs(children, timeout=30)[1] == []


def test_systems_that_start_at_the_same_time_get_ports_of_their_own(tmp_path: Path) -> None:
    wanted = Wanted("echo", None, None, None, None, None, as_json=False)
    with reserved_ports(tmp_path, wanted) as first, reserved_ports(tmp_path, wanted) as second:
        assert set(astuple(first)).isdisjoint(astuple(second))
    with ExitStack() as running_system:
        kept = running_system.enter_context(reserved_ports(tmp_path, replace(wanted, data=tmp_path)))
        with pytest.raises(DataRefused, match=f"port {kept.gateway}, which .*/ports.json keeps, is in use"):
            running_system.enter_context(reserved_ports(tmp_path, wanted))
    with reserved_ports(tmp_path, wanted) as again:
        assert again == kept


async def test_the_first_model_that_the_server_lists_answers() -> None:
    def wanted(url: str, model: str | None = None) -> Wanted:
        return Wanted("openai", model, url, None, None, None, as_json=False)

    answered = {
        "two": lists({"id": "first"}, {"id": "second"}),
        "none": lists(),
        "other": answers(200, {"hello": []}),
        "refused": answers(401, {}),
    }
    said = {}
    for name, respond in answered.items():
        app = web.Application()
        app.router.add_get("/v1/models", respond)
        async with serving(app) as url:
            try:
                said[name] = await asyncio.to_thread(served_model, wanted(url))
            except ServerRefused as refused:
                said[name] = str(refused).removeprefix(url)
    assert said == {
        "two": "first",
        "none": "/models lists no model; load one into the server, or give --model",
        "other": "/models is no list of models; --base-url usually ends with /v1",
        "refused": "/models does not answer (Unauthorized); start the server, or mend --base-url",
    }
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(ServerRefused, match="does not answer"):
            served_model(wanted(url))
        assert served_model(wanted(url, "named")) == "named"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "echo", "--base-url", "http://a/v1"], "--base-url goes with --engine openai, not with echo"),
        (["--engine", "vllm"], "--engine vllm needs a model: name it, or its folder, with --model"),
        (["--engine", "openai"], "--engine openai needs the server's address: give --base-url"),
        (["--model", "big"], "--model needs an engine: give --base-url, or --engine vllm"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_starts(options: list[str], said: str) -> None:
    done = postback_here("dev", *options, env=environment_of())
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


AT = Addresses("http://g", "http://g/console", "key", "k:9092", "http://r/", "http://m", "echo", "keyring.json")


@pytest.mark.parametrize("heading", ["By OpenAI's SDK", "By any Kafka client"])
def test_the_screen_s_python_can_be_pasted_as_printed(heading: str) -> None:
    compile(code_below(screen(AT, "model_requests", {}), heading), heading, "exec")


def test_a_server_nearby_is_offered() -> None:
    lines = screen(AT, "model_requests", {"Ollama": "http://127.0.0.1:11434/v1"})
    assert (
        lines[-1] == "Ollama runs here: `postback dev --base-url http://127.0.0.1:11434/v1` answers with its model.\n"
    )
    assert os.linesep.join(lines).count("Ctrl-C ends everything") == 1
