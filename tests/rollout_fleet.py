"""A worker whose alias gets a candidate, and jobs that keep coming until the rollout has a step."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

from tests.http_handler import Answering
from tests.postback_command import environment_of, postback_here
from tests.product import Fleet, Role, eventually

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
"""Options of a rollout that decides within a few hundred jobs."""


class Different(Answering):
    """A server of the chat completions API whose answers have other words than the question."""

    says = "<b>Something</b> else"
    status = 200
    """The status of each answer to a question; the text is sent only with 200."""

    closes = False
    """True to close the connection at each question instead of answering it."""

    def do_GET(self) -> None:
        self.answer_json(200, {"object": "list", "data": [{"id": "next", "object": "model"}]})

    def do_POST(self) -> None:
        self.body()
        if self.closes:
            self.close_connection = True
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": self.says}, "finish_reason": "stop"}
        answer = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        self.answer_json(
            self.status, answer if self.status == 200 else {"error": {"message": "the template is broken"}}
        )


class RolloutFleet:
    """A worker with the alias `assistant`, and jobs for it that keep coming until a condition holds."""

    def __init__(self, product: Fleet[Role], worker: Role) -> None:
        self.product = product
        self.worker = worker
        self.numbers = count()
        self.prompt = "Say {} now"

    def rollout(self, *arguments: str) -> str:
        done = postback_here("rollout", *arguments, env=environment_of(self.product.kafka))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> dict[str, Any]:
        [found] = json.loads(self.rollout("status", "--json"))
        assert isinstance(found, dict)
        return found

    def jobs(self, number: int) -> list[str]:
        """Send jobs, and return their ids."""
        names = [f"job-{next(self.numbers)}" for _ in range(number)]
        self.product.submit(
            {"job_id": name, "model_id": "assistant", "prompt": self.prompt.format(name), "max_tokens": 32}
            for name in names
        )
        return names

    def until(self, step: str, seconds: float = 120) -> dict[str, Any]:
        """Keep sending jobs until the rollout has this step."""

        return self.awaited(step, seconds, jobs=100)

    def awaited(self, step: str, seconds: float, jobs: int = 0) -> dict[str, Any]:
        """Wait until the rollout has this step; before each check, send this number of jobs."""

        def reached() -> bool:
            self.jobs(jobs)
            return bool(self.state()["step"] == step)

        eventually(reached, seconds, lambda: f"{self.state()} {self.worker.said()[-3000:]}")
        return self.state()

    def compared(self) -> int:
        """Send a few jobs, and return the number of comparisons so far."""
        self.jobs(5)
        return int(self.state()["compared"])

    def all_answered(self, **failed: int) -> list[dict[str, Any]]:
        """Wait until each job has a result, and return the results; fails if a job has two.

        `failed` has the number of results with each outcome other than `succeeded`.
        """
        sent = next(self.numbers)
        eventually(lambda: len(self.product.outcomes()) >= sent, 300, "jobs have no result")
        outcomes = Counter(self.product.outcomes().values())
        assert outcomes == {"succeeded": sent - sum(failed.values()), **failed}
        return self.product.results()


def echo_fleet(product: Fleet[Role], folder: Path, registry: str = REGISTRY, **settings: str) -> RolloutFleet:
    """Start an echo worker with the models `small` and `next`; `assistant` is an alias of `small`.

    `registry` is the text of another registry with these models.
    """
    file = folder / "models.toml"
    file.write_text(registry)
    worker = product.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file), **settings)
    eventually(lambda: "serving" in worker.said(), 60, worker.said)
    return RolloutFleet(product, worker)
