"""Rollouts on a real broker: workers, a shadow worker with the candidate, and the commands of an operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.play.model import embedding_model
from tests.fleet_here import FleetHere
from tests.http_handler import handling
from tests.postback_command import environment_of, postback_here
from tests.product import eventually
from tests.rollout_fleet import FAST, Different, RolloutFleet, echo_fleet

pytestmark = pytest.mark.broker


@pytest.fixture
def fleet(fleet_here: FleetHere, tmp_path: Path) -> RolloutFleet:
    return echo_fleet(fleet_here, tmp_path)


def test_the_same_weights_are_promoted_by_themselves_and_every_job_is_answered_once(
    fleet: RolloutFleet, tmp_path: Path
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


def test_a_different_model_is_aborted_by_itself_and_no_job_sees_it(fleet: RolloutFleet, tmp_path: Path) -> None:
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

    says = "Now say job-1"


def test_answers_in_other_words_are_equal_if_the_shadow_worker_compares_by_meaning(fleet: RolloutFleet) -> None:
    fleet.prompt = "Say job-1 now"  # each job has the same text, whose vector the model's process keeps
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
