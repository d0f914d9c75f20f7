"""Rollouts on a real broker: workers, a shadow worker with the candidate, and the commands of an operator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from devkit.model import embedding_model
from tests.http_handler import handling
from tests.postback_command import environment_of, postback_here
from tests.product import Product, eventually

pytestmark = pytest.mark.broker

REGISTRY = """
[engines.here]
kind = "echo"
[models.small]
engine = "here"
aliases = ["assistant"]
[models.next]
engine = "here"
"""
FAST = ("--sample", "1", "--canary-jobs", "3", "--per-second", "10000", "--max-jobs", "600")


class Fleet:
    """A worker with the alias `assistant`, and jobs for it that go on until a condition holds.

    `settings` are variables of the worker's environment.
    """

    def __init__(self, product: Product, folder: Path, **settings: str) -> None:
        self.product = product
        self.numbers = count()
        self.prompt = "Say {} now"
        file = folder / "models.toml"
        file.write_text(REGISTRY)
        self.worker = product.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file), **settings)
        eventually(lambda: "serving" in self.worker.said(), 60, self.worker.said)

    def rollout(self, *arguments: str) -> str:
        done = postback_here("rollout", *arguments, env=environment_of(self.product.kafka))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> dict[str, Any]:
        [found] = json.loads(self.rollout("status", "--json"))
        assert isinstance(found, dict)
        return found

    def jobs(self, number: int) -> None:
        names = [f"job-{next(self.numbers)}" for _ in range(number)]
        self.product.submit(
            {"job_id": name, "model_id": "assistant", "prompt": self.prompt.format(name)} for name in names
        )

    def until(self, step: str, seconds: float = 120) -> dict[str, Any]:
        """Send jobs until the rollout has this step."""

        def reached() -> bool:
            self.jobs(100)
            return bool(self.state()["step"] == step)

        eventually(reached, seconds, lambda: f"{self.state()} {self.worker.said()[-3000:]}")
        return self.state()

    def compared(self) -> int:
        """Send a few jobs, and return the number of comparisons so far."""
        self.jobs(5)
        return int(self.state()["compared"])

    def all_answered(self) -> list[dict[str, Any]]:
        """Wait until each job has a result; fails if a job has two."""
        sent = next(self.numbers)
        eventually(lambda: len(self.product.outcomes()) >= sent, 60, "jobs have no result")
        assert set(self.product.outcomes().values()) == {"succeeded"}
        return self.product.results()


@pytest.fixture
def fleet(product: Product, tmp_path: Path) -> Iterator[Fleet]:
    yield Fleet(product, tmp_path)


def test_the_same_weights_are_promoted_automatically_and_every_job_is_answered_once(
    fleet: Fleet, tmp_path: Path
) -> None:
    shadow = fleet.product.worker("s1", "--engine", "echo", "--model", "next", "--shadow")
    fleet.rollout("start", "--alias", "assistant", "--candidate", "next", *FAST)
    said = fleet.until("promoted")

    assert [each["step"] for each in said["steps"]] == ["canary-1", "canary-10", "canary-50", "canary-100", "promoted"]
    assert said["profiles"]["none"]["passed"]
    assert said["profiles"]["none"]["differs"] == 0
    results = fleet.all_answered()
    assert {each["model_id"] for each in results} == {"assistant"}
    assert fleet.product.dead_letters() == []
    report = tmp_path / "report.html"
    fleet.rollout("status", "--report", str(report))
    assert "candidate next, promoted" in report.read_text()
    assert "<svg" in report.read_text()

    fleet.rollout("abort")
    assert fleet.state()["step"] == "aborted"
    assert shadow.terminate() == 0
    assert fleet.worker.terminate() == 0


class Different(BaseHTTPRequestHandler):
    """A server of the chat completions API whose answers have other words than the question."""

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "next", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._says("<b>Something</b> else")

    def _says(self, text: str) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    def _answer(self, body: dict[str, Any]) -> None:
        value = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(value)))
        self.end_headers()
        self.wfile.write(value)

    def log_message(self, *_: object) -> None: ...


def test_a_different_model_is_aborted_automatically_and_no_job_sees_it(fleet: Fleet, tmp_path: Path) -> None:
    with handling(Different) as url:
        shadow = fleet.product.worker(
            *("s1", "--engine", "openai", "--model", "next", "--shadow"),
            POSTBACK_ENGINE__OPENAI__BASE_URL=f"{url}/v1",
        )
        start = ("start", "--alias", "assistant", "--candidate", "next", *FAST)
        fleet.rollout(*start)
        second = postback_here("rollout", *start, env=environment_of(fleet.product.kafka))
        assert second.returncode == 1
        assert "the rollout of next for assistant is still running" in second.stderr
        said = fleet.until("aborted")
        assert shadow.terminate() == 0

    assert [each["step"] for each in said["steps"]] == ["aborted"]
    assert "differ" in said["steps"][0]["why"]
    results = fleet.all_answered()
    assert all(each["text"].startswith("Say job-") for each in results)
    report = tmp_path / "report.html"
    fleet.rollout("status", "--report", str(report))
    assert "&lt;b&gt;Something&lt;/b&gt;" in report.read_text()
    assert "<b>Something" not in report.read_text()


class Reworded(Different):
    """A server that answers in another order of words than the question's."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._says("Now say job-1")


def test_answers_in_other_words_are_equal_if_the_shadow_worker_compares_by_meaning(fleet: Fleet) -> None:
    fleet.prompt = "Say job-1 now"  # one text, whose vector the model's process keeps
    with handling(Reworded) as url:
        shadow = fleet.product.worker(
            *("s1", "--engine", "openai", "--model", "next", "--shadow"),
            POSTBACK_ENGINE__OPENAI__BASE_URL=f"{url}/v1",
            POSTBACK_WORKER__SHADOW_EMBEDDING_MODEL=str(embedding_model()),
        )
        fleet.rollout("start", "--alias", "assistant", "--candidate", "next", *FAST)
        eventually(lambda: fleet.compared() >= 10, 240, shadow.said)
        assert fleet.state()["profiles"]["none"]["differs"] == 0
        assert shadow.metrics()["postback_rollout_samples_total{same_meaning}"] >= 10
        assert shadow.terminate() == 0
