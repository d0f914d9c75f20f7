"""A candidate whose engine is away during the canary: no job waits for it, and its jobs count as its failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from schemas import topics as names
from schemas.codec import Origin, ReceivedJob, read_result
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.rollout.comparison import Comparison, ObservedAnswer, read_comparison
from schemas.rollout.facts import DEFAULT_ALIAS, Step, order_record
from telemetry.hand_clock import HandClock
from tests.handlers import TOPICS
from tests.unit.echo_worker import Worker, working
from tests.unit.test_rollout_workers import ELSEWHERE, MODELS, ORDER, begin, job, step
from workers.engines.base import Completion, EngineFailed, EngineUnavailable, GenerationRequest
from workers.engines.echo import EchoEngine
from workers.inference.registry import Forward, Ours, Registry
from workers.inference.rollout import absence
from workers.inference.rollout.absence import PATIENCE_SECONDS, Absences, CandidateAway
from workers.inference.rollout.rollouts import Rollouts
from workers.stage.record import Output

FAILED = ObservedAnswer(failed=True)


class Away:
    """Makes the models in `failures` fail as often as stated, and counts all requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: EngineUnavailable | None = None) -> None:
        self.failures: dict[str, float] = {"next": math.inf}
        self.asked: list[str | None] = []
        answered = EchoEngine.generate
        monkeypatch.setattr(absence, "PATIENCE_SECONDS", 0.0)

        async def generate(engine: EchoEngine, request: GenerationRequest) -> Completion:
            self.asked.append(request.model_id)
            left = self.failures.get(request.model_id or "", 0)
            if left > 0:
                self.failures[request.model_id or ""] = left - 1
                raise error or EngineUnavailable("connection refused")
            return await answered(engine, request)

        monkeypatch.setattr(EchoEngine, "generate", generate)


def reports(outputs: Sequence[Output]) -> list[Comparison]:
    return [read_comparison(each.key, each.value) for each in outputs if each.topic == TOPICS.comparisons]


async def answered(worker: Worker, *steps: Step) -> tuple[Sequence[Output], list[ObservedAnswer | None]]:
    begin(worker, *steps)
    outputs = await worker.outputs(job())
    return outputs, [each.candidate for each in reports(outputs)]


@pytest.mark.parametrize("error", [EngineUnavailable("refused"), EngineFailed("status 500")])
async def test_the_primary_answers_for_a_candidate_that_is_away_and_the_candidate_has_a_failure(
    error: EngineUnavailable, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, error)
    async with working(MODELS) as worker:
        outputs, seen = await answered(worker, Step.CANARY_100)
    result = read_result(outputs[0].value)
    assert (result.outcome, result.text, result.model_id) == (Outcome.SUCCEEDED, "Say it", "assistant")
    assert away.asked == ["next", "assistant"]
    assert [each for each in seen if each is not None] == [FAILED]
    assert [each.primary is not None for each in reports(outputs)] == [True, False]


async def test_a_candidate_is_not_blamed_if_the_primary_is_away_too(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(monkeypatch)
    away.failures["assistant"] = 1
    async with working(MODELS) as worker:
        outputs, seen = await answered(worker, Step.CANARY_100)
    assert read_result(outputs[0].value).outcome == Outcome.SUCCEEDED
    assert away.asked == ["next", "assistant", "assistant"]
    assert seen == [None]


async def test_a_candidate_in_a_lane_of_its_own_sends_its_jobs_back_while_it_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = Away(monkeypatch)
    async with working({"assistant": "small", "next": None}) as worker:
        begin(worker, Step.CANARY_100)
        outputs = await worker.outputs(job((names.FORWARDED, b"1")))
    assert (outputs[0].topic, away.asked) == (TOPICS.requests("small"), ["next"])
    assert dict(outputs[0].headers or ())[names.FORWARDED] == b"2"
    assert [each.candidate for each in reports(outputs)] == [FAILED]
    async with working(ELSEWHERE) as primary:
        begin(primary, Step.CANARY_100)
        again = await primary.outputs(job((names.FORWARDED, b"2")))
    assert again[0].topic == TOPICS.results


@pytest.mark.parametrize("last", [Step.PROMOTED, Step.ABORTED])
async def test_a_job_waits_for_a_promoted_model_but_not_for_a_candidate_of_an_aborted_rollout(
    last: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    away.failures["next"] = 2
    async with working(MODELS) as worker:
        outputs, seen = await answered(worker, last)
    assert read_result(outputs[0].value).outcome == Outcome.SUCCEEDED
    assert away.asked == (["next"] * 3 if last is Step.PROMOTED else ["assistant"])
    assert seen == []


async def test_the_canary_reports_a_job_that_expires_at_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(monkeypatch)
    away.failures["assistant"] = math.inf
    async with working(MODELS) as worker:
        begin(worker, Step.CANARY_1)
        outputs = await worker.outputs(job(job_id="j1", ttl_seconds=0.3))
    assert read_result(outputs[0].value).outcome == Outcome.EXPIRED
    assert [each.primary for each in reports(outputs)] == [FAILED]


# -- how long a candidate may be away ------------------------------------------------------------------------------


def trial(*steps: Step, alias: str = "assistant", lane: str | None = None) -> tuple[Absences, HandClock]:
    rollouts, clock = Rollouts(Registry(("next",), lane, {"assistant": None})), HandClock()
    rollouts.apply(*order_record(ORDER.model_copy(update={"alias": alias})))
    for each in steps:
        rollouts.apply(*step(each))
    return Absences(rollouts, clock), clock


def received(model: str | None = "next", alias: str | None = "assistant") -> ReceivedJob:
    asked, place = Job(prompt="x", model_id=model), Origin("t", 0, 0)
    return ReceivedJob(asked, "j1", "acme", "msg", place, place, 10**15, 0, None, 0, alias=alias)


def test_a_candidate_is_away_after_ten_seconds_without_an_answer_to_any_job() -> None:
    absences, clock = trial(Step.CANARY_1)
    assert absences.failed(received(), "next", 1000) == PATIENCE_SECONDS
    clock.sleep(PATIENCE_SECONDS - 1)
    assert absences.failed(received(), "next", 1000) == 1
    absences.answered("next")  # another job is answered, so the server is there, but busy
    clock.sleep(PATIENCE_SECONDS)
    assert absences.failed(received(), "next", 1000) == PATIENCE_SECONDS
    clock.sleep(PATIENCE_SECONDS)
    with pytest.raises(CandidateAway) as away:
        absences.failed(received(), "next", 1000)
    assert away.value.instead(received()).job.model_id == "assistant"
    with pytest.raises(CandidateAway):
        absences.failed(received(), "next", 1000)


def test_a_job_that_ends_soon_waits_for_half_of_its_life() -> None:
    absences, clock = trial(Step.CANARY_1)
    assert absences.failed(received(), "next", 6) == 3
    clock.sleep(3)
    with pytest.raises(CandidateAway):
        absences.failed(received(), "next", 6)


@pytest.mark.parametrize(
    ("asked", "model"),
    [(received(alias=None), "next"), (received("small"), "small"), (received(), "larger")],
    ids=["by its own name", "the primary", "an escalation"],
)
def test_a_job_waits_for_every_model_but_a_candidate(asked: ReceivedJob, model: str) -> None:
    absences, clock = trial(Step.CANARY_1)
    for _ in range(3):
        assert absences.failed(asked, model, 1000) == math.inf
        clock.sleep(PATIENCE_SECONDS)


def test_a_job_waits_for_a_candidate_if_no_worker_is_known_for_the_primary() -> None:
    absences, clock = trial(Step.CANARY_1, alias="unknown")
    for _ in range(3):
        assert absences.failed(received(alias="unknown"), "next", 1000) == math.inf
        clock.sleep(PATIENCE_SECONDS)


def test_a_job_without_a_model_goes_back_from_the_candidates_lane_to_the_shared_one() -> None:
    absences, clock = trial(alias=DEFAULT_ALIAS, lane="big")
    asked = replace(received(), alias=DEFAULT_ALIAS)
    absences.failed(asked, "next", 1000)
    clock.sleep(PATIENCE_SECONDS)
    with pytest.raises(CandidateAway) as away:
        absences.failed(asked, "next", 1000)
    assert away.value.instead(asked).job.model_id is None
    lane, shared = Registry(("next",), "big", {}), Registry(("small",), None, {"next": "big"})
    assert lane.route(None, "1") == Forward(None, 2)
    assert shared.route(None, "2") == Ours()
    assert lane.route(None, None) == Ours()  # the producer itself chose the lane
