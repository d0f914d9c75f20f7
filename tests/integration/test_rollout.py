"""Rollouts on a real broker: a shadow worker, a canary that fails, and the commands of an operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.operations.topics import create_topics
from scripts.play.model import embedding_model
from tests.fleet_here import FleetHere, RoleHere
from tests.http_handler import handling
from tests.postback_command import environment_of, postback_here
from tests.product import eventually
from tests.rollout_fleet import FAST, REGISTRY, Different, RolloutFleet, echo_fleet


@pytest.fixture
def echoing(fleet_here: FleetHere, tmp_path: Path) -> RolloutFleet:
    return echo_fleet(fleet_here, tmp_path)


def test_the_same_weights_are_promoted_by_themselves_and_every_job_is_answered_once(
    echoing: RolloutFleet, tmp_path: Path
) -> None:
    shadow = echoing.product.worker("s1", "--engine", "echo", "--model", "next", "--shadow")
    echoing.rollout("start", "--alias", "assistant", "--candidate", "next", *FAST)
    said = echoing.until("promoted")

    assert [each["step"] for each in said["steps"]] == ["canary-1", "canary-10", "canary-50", "canary-100", "promoted"]
    assert said["profiles"]["none"]["passed"]
    assert said["profiles"]["none"]["differs"] == 0
    results = echoing.all_answered()
    assert {each["model_id"] for each in results} == {"assistant"}
    assert echoing.product.dead_letters() == []
    report = tmp_path / "report.html"
    echoing.rollout("status", "--report", str(report))
    assert "candidate next, promoted" in report.read_text()
    assert "<svg" in report.read_text()

    echoing.rollout("abort")
    assert echoing.state()["step"] == "aborted"
    assert shadow.terminate() == 0
    assert echoing.worker.terminate() == 0


def test_a_different_model_is_aborted_by_itself_and_no_job_sees_it(echoing: RolloutFleet, tmp_path: Path) -> None:
    with handling(Different) as url:
        shadow = echoing.product.worker(
            *("s1", "--engine", "openai", "--model", "next", "--shadow"),
            POSTBACK_ENGINE__OPENAI__BASE_URL=f"{url}/v1",
        )
        start = ("start", "--alias", "assistant", "--candidate", "next", *FAST)
        echoing.rollout(*start)
        second = postback_here("rollout", *start, env=environment_of(echoing.product.kafka))
        assert second.returncode == 1
        assert "the rollout of next for assistant is still running" in second.stderr
        said = echoing.until("aborted")
        assert shadow.terminate() == 0

    assert [each["step"] for each in said["steps"]] == ["aborted"]
    assert "differ" in said["steps"][0]["why"]
    results = echoing.all_answered()
    assert all(each["text"].startswith("Say job-") for each in results)
    report = tmp_path / "report.html"
    echoing.rollout("status", "--report", str(report))
    assert "&lt;b&gt;Something&lt;/b&gt;" in report.read_text()
    assert "<b>Something" not in report.read_text()


class Reworded(Different):
    """A server that answers in another order of words than the question's."""

    says = "Now say job-1"


def test_answers_in_other_words_are_equal_if_the_shadow_worker_compares_by_meaning(echoing: RolloutFleet) -> None:
    echoing.prompt = "Say job-1 now"  # each job has the same text, whose vector the model's process keeps
    with handling(Reworded) as url:
        shadow = echoing.product.worker(
            *("s1", "--engine", "openai", "--model", "next", "--shadow"),
            POSTBACK_ENGINE__OPENAI__BASE_URL=f"{url}/v1",
            POSTBACK_WORKER__SHADOW_EMBEDDING_MODEL=str(embedding_model()),
        )
        echoing.rollout("start", "--alias", "assistant", "--candidate", "next", *FAST)
        eventually(lambda: echoing.compared() >= 10, 240, shadow.said)
        assert echoing.state()["profiles"]["none"]["differs"] == 0
        assert shadow.metrics()["postback_rollout_samples_total{same_meaning}"] >= 10
        assert shadow.terminate() == 0


pytestmark = [pytest.mark.broker, pytest.mark.timeout(900)]

AT_A_SERVER = REGISTRY.replace(
    """[models.next]
engine = "here"
""",
    """[engines.there]
kind = "openai"
addresses = ["URL/v1"]
[models.next]
engine = "there"
""",
)
"""A registry whose candidate is at a server. The shadow worker has another copy of the candidate."""


class Refusing(Different):
    """A server whose model declines each question."""

    says = "I cannot help with that."


class Rejecting(Different):
    """A server that answers each question with the status 400."""

    status = 400


def aborted_canary(fleet_here: FleetHere, tmp_path: Path, url: str) -> tuple[RolloutFleet, RoleHere, dict[str, Any]]:
    """A rollout whose candidate, at `url`, was aborted in the canary: the fleet, the shadow worker, and the state."""
    fleet = echo_fleet(fleet_here, tmp_path, AT_A_SERVER.replace("URL", url))
    shadow = fleet_here.worker("s1", "--engine", "echo", "--model", "next", "--shadow")
    # Seven bad answers abort the rollout, so the canary never reaches its twelve jobs.
    fleet.rollout("start", "--alias", "assistant", "--candidate", "next", *FAST, "--canary-jobs", "12")
    return fleet, shadow, fleet.awaited("aborted", 400, jobs=300)


@pytest.mark.parametrize(
    ("server", "says", "counted", "why"),
    [(Refusing, Refusing.says, "answered", "more refusals"), (Rejecting, None, "refused", "more failures")],
)
def test_a_candidate_that_is_good_in_shadow_and_bad_in_the_canary_gives_way_to_the_primary_by_itself(
    server: type[Different], says: str | None, counted: str, why: str, fleet_here: FleetHere, tmp_path: Path
) -> None:
    with handling(server) as url:
        fleet, shadow, said = aborted_canary(fleet_here, tmp_path, url)
        later = fleet.jobs(100)
        failed = {} if says is not None else {"rejected": len(fleet_here.dead_letters())}
        answers = {each["job_id"]: each.get("text") for each in fleet.all_answered(**failed)}
        asked = fleet.worker.metrics()[f"postback_model_requests_total{{next,{counted}}}"]
        assert shadow.terminate() == 0
        assert fleet.worker.terminate() == 0

    assert [each["step"] for each in said["steps"]] == ["canary-1", "aborted"]
    assert why in said["steps"][1]["why"]
    bad = [name for name, text in answers.items() if text == says]
    assert len(bad) == asked >= 7
    assert {name: text for name, text in answers.items() if text != f"Say {name} now"} == dict.fromkeys(bad, says)
    assert not {*later} & {*bad}


class Closing(Different):
    """A server that closes the connection at each question, as if its engine were away."""

    closes = True


def test_jobs_do_not_wait_for_a_candidate_whose_server_is_away_and_its_rollout_ends_by_itself(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    with handling(Closing) as url:
        fleet, shadow, said = aborted_canary(fleet_here, tmp_path, url)
        answers = {each["job_id"]: each.get("text") for each in fleet.all_answered()}
        assert shadow.terminate() == 0
        assert fleet.worker.terminate() == 0

    assert [each["step"] for each in said["steps"]] == ["canary-1", "aborted"]
    assert "more failures" in said["steps"][1]["why"]
    assert answers == {name: f"Say {name} now" for name in answers}
    assert "letting the primary answer" in fleet.worker.said()


def test_the_primary_answers_for_a_candidate_whose_lane_no_worker_reads_until_a_worker_of_that_lane_runs(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    create_topics(fleet_here.kafka, engines=["big"])
    registry = f'{REGISTRY}lane = "big"\n'
    fleet = echo_fleet(fleet_here, tmp_path, registry)
    shadow = fleet_here.worker("s1", "--engine", "echo", "--model", "next", "--shadow")
    fleet.rollout("start", "--alias", "assistant", "--candidate", "next", *FAST)
    fleet.awaited("canary-1", 400, jobs=300)
    names = {*fleet.jobs(2000)}
    eventually(lambda: names <= fleet_here.outcomes().keys(), 300, "jobs have no result")
    assert fleet_here.read(fleet_here.kafka.topics.requests("big")) == []
    assert fleet.state()["step"] == "canary-1"
    assert "letting the primary answer" in fleet.worker.said()

    settings = {"POSTBACK_WORKER__REGISTRY": str(tmp_path / "models.toml"), "POSTBACK_WORKER__LANE": "big"}
    candidate = fleet_here.worker("w2", "--host", "127.0.0.1", **settings)
    said = fleet.until("promoted", 400)
    fleet.all_answered()
    assert [each["step"] for each in said["steps"]] == ["canary-1", "canary-10", "canary-50", "canary-100", "promoted"]
    assert len(fleet_here.read(fleet_here.kafka.topics.requests("big"))) > 0
    for role in (shadow, candidate, fleet.worker):
        assert role.terminate() == 0
