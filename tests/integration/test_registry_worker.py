"""A worker process with a model registry on a real broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fleet_here import FleetHere
from tests.product import eventually

pytestmark = pytest.mark.broker

FILE = """
[engines.here]
kind = "echo"
[models.small]
engine = "here"
aliases = ["gpt-4o-mini"]
cost = { prompt = 1, completion = 2 }
[models.other]
engine = "here"
"""


def test_a_worker_answers_for_each_model_of_its_registry_and_follows_the_files_aliases(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(FILE)
    worker = fleet_here.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file))
    topic = fleet_here.kafka.topics.workers
    eventually(lambda: bool(fleet_here.read(topic)), 60, "the worker does not announce itself")
    assert json.loads(fleet_here.read(topic)[-1].value() or b"")["models"] == ["small", "gpt-4o-mini", "other"]

    def answered(job_id: str, model: str) -> dict[str, object]:
        fleet_here.submit([{"job_id": job_id, "prompt": "one two three", "model_id": model}])
        eventually(lambda: job_id in fleet_here.outcomes(), 60, f"no result of {job_id}")
        [result] = [each for each in fleet_here.results() if each["job_id"] == job_id]
        return {name: result.get(name) for name in ("model_id", "outcome", "usage")}

    usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    priced = {**usage, "cost": 9e-06, "currency": "USD"}
    assert answered("a", "gpt-4o-mini") == {"model_id": "gpt-4o-mini", "outcome": "succeeded", "usage": priced}
    assert answered("b", "other") == {"model_id": "other", "outcome": "succeeded", "usage": usage}
    assert answered("c", "new-name")["outcome"] == "rejected"

    file.write_text(FILE.replace('["gpt-4o-mini"]', '["new-name"]'))
    eventually(lambda: "registry-reloaded" in worker.said(), 60, "the worker does not read the file again")
    assert answered("d", "new-name")["outcome"] == "succeeded"
    assert answered("e", "gpt-4o-mini")["outcome"] == "rejected"
    assert worker.terminate() == 0


def test_a_worker_refuses_a_registry_with_mistakes_and_names_them(fleet_here: FleetHere, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(FILE.replace('"gpt-4o-mini"', '"other"'))
    worker = fleet_here.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file))
    assert worker.ended(60) == 1
    assert (
        'line 8: models.other.aliases: "other" is given more than once as a name, by "small", "other"'
        in worker.lines()[-1]["message"]
    )
