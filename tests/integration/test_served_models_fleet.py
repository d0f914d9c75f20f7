"""A worker's registry through Kafka, over local servers that refuse, fail and limit: each job has one result."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.fleet_here import FleetHere
from tests.http_handler import Answering, handling
from tests.product import CLOCK, Role, eventually

pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

REGISTRY = """
[engines.busy]
kind = "openai"
addresses = [{busy}]
[engines.twofold]
kind = "openai"
addresses = [{down}, {up}]
attempts = 1
[engines.small]
kind = "openai"
addresses = [{small}]
attempts = 1
[engines.large]
kind = "openai"
addresses = [{large}]
[engines.paced]
kind = "openai"
addresses = [{paced}]
[models.busy]
engine = "busy"
[models.twofold]
engine = "twofold"
[models.small]
engine = "small"
escalate = { to = "large", on = ["failed"] }
[models.large]
engine = "large"
[models.paced]
engine = "paced"
limits = { requests_per_second = 2 }
"""
LARGE = '{"large": true}'
JSON = {"response_format": {"type": "json_object"}}
Reply = tuple[int, dict[str, str], str]
"""The status, headers and text of an answer."""


@dataclass
class Server:
    """A server of the chat completions API.

    `reply` gets a prompt, and the number of earlier requests with this prompt.
    """

    reply: Callable[[int, str], Reply]
    asked: list[tuple[float, str]] = field(default_factory=list)
    """The time and prompt of each request."""

    def __call__(self, *arguments: Any) -> BaseHTTPRequestHandler:
        return _Handler(self, *arguments)

    def times(self, prompt: str) -> list[float]:
        return [at for at, said in self.asked if said == prompt]

    def prompts(self) -> list[str]:
        return sorted(said for _, said in self.asked)


class _Handler(Answering):
    def __init__(self, server: Server, *arguments: Any) -> None:
        self._scripted = server
        super().__init__(*arguments)

    def do_GET(self) -> None:
        names = [{"id": name} for name in ("busy", "twofold", "small", "large", "paced")]
        self.answer_json(200 if self.path == "/v1/models" else 404, {"object": "list", "data": names})

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        prompt = asked["messages"][-1]["content"]
        before = len(self._scripted.times(prompt))
        self._scripted.asked.append((CLOCK.monotonic(), prompt))
        status, headers, text = self._scripted.reply(before, prompt)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        self.answer_json(status, {"choices": [choice], "usage": usage} if status == 200 else {}, headers)


def echoes(_: int, prompt: str) -> Reply:
    return 200, {}, prompt


def first_busy(before: int, prompt: str) -> Reply:
    return (429, {"Retry-After": "2"}, "") if before == 0 else echoes(before, prompt)


def broken(_: int, __: str) -> Reply:
    return 503, {}, ""


def poisonable(before: int, prompt: str) -> Reply:
    return (500, {}, "") if "poison" in prompt else echoes(before, prompt)


def in_json(_: int, __: str) -> Reply:
    return 200, {}, LARGE


@dataclass
class Served:
    """The servers by name, and the worker in front of them."""

    servers: dict[str, Server]
    worker: Role


def started(fleet_here: FleetHere, folder: Path, stack: ExitStack) -> Served:
    """Start the servers and a worker whose registry has their models."""
    replies = {"busy": first_busy, "down": broken, "up": echoes, "small": poisonable}
    servers = {name: Server(reply) for name, reply in {**replies, "large": in_json, "paced": echoes}.items()}
    text = REGISTRY
    for name, server in servers.items():
        text = text.replace(f"{{{name}}}", json.dumps(f"{stack.enter_context(handling(server))}/v1"))
    file = folder / "models.toml"
    file.write_text(text)
    return Served(servers, fleet_here.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file)))


def jobs(model: str, number: int, **more: Any) -> list[dict[str, Any]]:
    names = [f"{model}-{each}" for each in range(number)]
    return [{"job_id": name, "model_id": model, "prompt": f"Say {name}", **more} for name in names]


def test_servers_that_refuse_fail_or_limit_leave_each_job_one_result_from_a_model_that_answers(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        served = started(fleet_here, tmp_path, stack)
        sent = [*jobs("busy", 2), *jobs("twofold", 20), *jobs("paced", 12)]
        sent += [{"job_id": "json", "model_id": "small", "prompt": "Say no JSON", **JSON}]
        sent += [{"job_id": "poison", "model_id": "small", "prompt": "Say poison"}]
        fleet_here.submit(sent)
        beside = 0

        def poisoned() -> bool:
            """Submit a job that gets an answer: failures count against a job only while other jobs are answered."""
            nonlocal beside
            fleet_here.submit([{"job_id": f"beside-{beside}", "model_id": "small", "prompt": "Say beside"}])
            beside += 1
            return "poison" in fleet_here.outcomes()

        eventually(poisoned, 400, served.worker.said)
        fleet_here.wait_for_results(len(sent) + beside, 120)
        metrics = served.worker.metrics()
        assert served.worker.terminate() == 0

    names = [each["job_id"] for each in sent] + [f"beside-{number}" for number in range(beside)]
    assert fleet_here.outcomes() == dict.fromkeys(names, "succeeded")
    assert fleet_here.dead_letters() == []
    results = {each["job_id"]: each for each in fleet_here.results()}
    servers = served.servers
    for name, code in (("json", "not_json"), ("poison", "engine_error")):
        assert results[name]["text"] == LARGE
        assert results[name]["notes"] == [f"escalated: {code} with model small; model large answered"]
    assert servers["large"].prompts() == ["Say no JSON", "Say poison"]

    # By the servers' clocks, each job was asked once more, and not before the time that `Retry-After` gives.
    waits = [servers["busy"].times(f"Say busy-{number}") for number in range(2)]
    assert [len(times) for times in waits] == [2, 2]
    assert min(times[1] - times[0] for times in waits) > 1.9
    assert metrics["postback_model_circuits_open{twofold}"] == 1
    assert servers["up"].prompts() == sorted(f"Say twofold-{number}" for number in range(20))
    assert 2 <= len(servers["down"].asked) < 20
    # Three requests may begin at once, and each later request half a second after the one before.
    assert len(servers["paced"].asked) == 12
    assert servers["paced"].asked[-1][0] - servers["paced"].asked[0][0] > 2
