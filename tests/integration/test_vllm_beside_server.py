"""vLLM in a worker's process beside a server of the chat completions API, through Kafka: the server goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.play.model import tiny_model
from tests.http_handler import handling
from tests.product import Product, eventually
from tests.rollout_fleet import Different

pytestmark = [pytest.mark.broker, pytest.mark.vllm, pytest.mark.timeout(2_400)]

REGISTRY = """
[engines.here]
kind = "vllm"
context_tokens = 1024
[engines.there]
kind = "openai"
addresses = ["URL/v1"]
attempts = 1
[models.inside]
engine = "here"
model = "FOLDER"
[models.next]
engine = "there"
"""
LOADING = 600.0
"""Seconds that vLLM may take to load on a busy machine."""


def jobs(name: str, model: str, number: int) -> list[dict[str, object]]:
    return [
        {"job_id": f"{name}-{each}", "model_id": model, "prompt": "Who wrote it?", "max_tokens": 16}
        for each in range(number)
    ]


def answered(product: Product, name: str) -> set[tuple[str, str | None, str, bool]]:
    """The distinct outcomes, engines and models of these jobs, and whether the server's text answered them."""
    of_name = [each for each in product.results() if each["job_id"].startswith(f"{name}-")]
    return {
        (each["outcome"], each.get("engine"), each["model_id"], each.get("text") == Different.says) for each in of_name
    }


def test_each_job_is_answered_by_its_models_engine_and_vllms_jobs_go_on_while_the_server_is_away(
    product: Product, tmp_path: Path
) -> None:
    by_vllm, by_server = ("succeeded", "vllm", "inside", False), ("succeeded", "openai", "next", True)
    with handling(Different) as url:
        file = tmp_path / "models.toml"
        file.write_text(REGISTRY.replace("URL", url).replace("FOLDER", str(tiny_model())))
        worker = product.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file))
        eventually(lambda: worker.ready()[0], LOADING, worker.said)
        product.submit([*jobs("first", "inside", 12), *jobs("remote", "next", 12)])
        product.wait_for_results(24, 120)
        assert answered(product, "first") == {by_vllm}
        assert answered(product, "remote") == {by_server}

    product.submit(jobs("waiting", "next", 6))
    eventually(lambda: worker.metrics()["postback_in_flight"] == 6, 60, "the jobs for the server are not taken")
    for number in range(3):
        product.submit(jobs(f"later{number}", "inside", 12))
        product.wait_for_results(24 + 12 * (number + 1), 120)
        assert answered(product, f"later{number}") == {by_vllm}
    assert answered(product, "waiting") == set()

    with handling(Different, port=int(url.rpartition(":")[2])):
        product.wait_for_results(24 + 36 + 6, 300)
        assert answered(product, "waiting") == {by_server}
        assert len(product.outcomes()) == 24 + 36 + 6
        assert product.dead_letters() == []
        assert worker.metrics()["postback_engine_restarts_total"] == 0
        assert worker.terminate() == 0
