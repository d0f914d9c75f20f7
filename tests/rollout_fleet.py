"""A worker whose alias gets a candidate, and jobs that keep coming until the rollout has a step."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from tests.postback_command import environment_of, postback_here
from tests.product import Product, Role, eventually

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


class RolloutFleet:
    """A worker with the alias `assistant`, and jobs for it that keep coming until a condition holds."""

    def __init__(self, product: Product, worker: Role) -> None:
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

    def jobs(self, number: int) -> None:
        names = [f"job-{next(self.numbers)}" for _ in range(number)]
        self.product.submit(
            {"job_id": name, "model_id": "assistant", "prompt": self.prompt.format(name), "max_tokens": 32}
            for name in names
        )

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

    def all_answered(self) -> list[dict[str, Any]]:
        """Wait until each job has a result; fails if a job has two."""
        sent = next(self.numbers)
        eventually(lambda: len(self.product.outcomes()) >= sent, 300, "jobs have no result")
        assert set(self.product.outcomes().values()) == {"succeeded"}
        return self.product.results()


def echo_fleet(product: Product, folder: Path, **settings: str) -> RolloutFleet:
    """Start an echo worker with the models `small` and `next`; `assistant` is an alias of `small`."""
    file = folder / "models.toml"
    file.write_text(REGISTRY)
    worker = product.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file), **settings)
    eventually(lambda: "serving" in worker.said(), 60, worker.said)
    return RolloutFleet(product, worker)
