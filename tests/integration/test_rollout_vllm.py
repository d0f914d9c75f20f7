"""A rollout between real models of vLLM: other weights are aborted, the same weights are promoted, and jobs flow on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from time import time

import pytest

from cli.operations.topics import create_topics
from scripts.play.model import tiny_model
from tests.integration.test_new_weights import retrained
from tests.product import Product, Role, eventually
from tests.repeating import repeating
from tests.rollout_fleet import RolloutFleet

pytestmark = [pytest.mark.broker, pytest.mark.vllm, pytest.mark.timeout(2_400)]

LOADING = 600.0
"""Seconds that vLLM may take to load on a busy machine."""
DECIDING = 600.0
BURST = 50
"""Jobs between two looks at a rollout: so many that the rollout decides soon."""
LANE = "candidate"
# The models share two cores with other tests, so the time of an answer shows nothing and must not decide.
START = (
    *("start", "--alias", "assistant", "--sample", "1", "--canary-jobs", "3"),
    *("--per-second", "10000", "--slower", "1000"),
)


def model(name: str, folder: Path, more: str = "") -> str:
    """The part of a registry's file for one model, which has a vLLM of its own."""
    engine = f'[engines.of_{name}]\nkind = "vllm"\ncontext_tokens = 1024\n'
    return f'{engine}[models.{name}]\nengine = "of_{name}"\nmodel = "{folder}"\n{more}'


def loaded(product: Product, name: str, registry: Path, *arguments: str, **settings: str) -> Role:
    """Start a worker with this registry, and wait until its model is loaded."""
    worker = product.worker(
        name, "--host", "127.0.0.1", *arguments, POSTBACK_WORKER__REGISTRY=str(registry), **settings
    )
    eventually(lambda: worker.ready()[0], LOADING, worker.said)
    return worker


@contextmanager
def shadow(product: Product, name: str, folder: Path, file: Path) -> Iterator[None]:
    """Run a shadow worker whose vLLM has the folder's weights under this name."""
    file.write_text(model(name, folder))
    worker = loaded(product, f"shadow-{name}", file, "--shadow")
    yield
    assert worker.terminate() == 0


def steady_jobs(fleet: RolloutFleet) -> AbstractContextManager[None]:
    """Submit two jobs twice a second, so that a pause in the results is not one of the submitter."""
    return repeating(0.5, lambda: fleet.jobs(2))


def longest_pause_seconds(product: Product, since: float, until: float) -> float:
    """Return the longest time between two results' records in a period."""
    times = sorted(message.timestamp()[1] / 1000 for message in product.read(product.kafka.topics.results))
    return max(after - before for before, after in pairwise(each for each in times if since <= each <= until))


def test_other_weights_are_aborted_and_the_same_are_promoted_while_jobs_flow(
    product: Product, tmp_path: Path, show: Callable[[str], None]
) -> None:
    # The fleet's workers need not know the model `other`, because its rollout never gets as far as a canary.
    registry = tmp_path / "models.toml"
    registry.write_text(
        model("small", tiny_model(), 'aliases = ["assistant"]\n') + model("same", tiny_model(), f'lane = "{LANE}"\n')
    )
    create_topics(product.kafka, engines=[LANE])
    fleet = RolloutFleet(product, loaded(product, "w1", registry))
    since = time()
    with steady_jobs(fleet):
        with shadow(product, "other", retrained(tmp_path / "other", 2), tmp_path / "other.toml"):
            fleet.rollout(*START, "--candidate", "other")
            aborted = fleet.awaited("aborted", DECIDING, jobs=BURST)
        with shadow(product, "same", tiny_model(), tmp_path / "same.toml"):
            fleet.rollout(*START, "--candidate", "same")
            fleet.awaited("canary-1", DECIDING, jobs=BURST)
        # The candidate's worker starts last, since each vLLM takes 4 GB of memory.
        candidate = loaded(product, "w2", registry, POSTBACK_WORKER__LANE=LANE)
        promoted = fleet.awaited("promoted", DECIDING, jobs=BURST)
        until = time()
    assert [each["step"] for each in aborted["steps"]] == ["aborted"]
    assert "differ" in aborted["steps"][0]["why"]
    assert [each["step"] for each in promoted["steps"]] == [
        *("canary-1", "canary-10", "canary-50", "canary-100", "promoted")
    ]
    assert {each["model_id"] for each in fleet.all_answered()} == {"assistant"}
    compared = aborted["compared"], promoted["compared"]
    pause = longest_pause_seconds(product, since, until)
    show(f"decided after {compared} comparisons; the longest time without a result was {pause:.2f} s")
    for worker in (fleet.worker, candidate):
        assert worker.metrics()["postback_engine_restarts_total"] == 0
        assert worker.terminate() == 0
