"""A rollout in the workers: samples, comparisons, lanes, steering, and a candidate that is away."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import topics as names
from schemas.codec import Origin, ReceivedJob, read_result
from schemas.images import data_url
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.rollout.comparison import Comparison, ObservedAnswer, read_comparison, write_comparison
from schemas.rollout.facts import DEFAULT_ALIAS, RolloutOrder, RolloutStep, Step, order_record, step_record
from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, announcement, worker_key, write_announcement
from scripts.publish.job_examples import KIND_JOBS
from telemetry.hand_clock import HandClock, SetClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.handlers import CLOCK, TOPICS
from tests.images import PNG, image_part
from tests.unit.echo_worker import Worker, record, working
from workers.engines.base import (
    NO_IMAGES,
    Completion,
    EngineFailed,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
    require_texts,
)
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.answering.profile import Profiles
from workers.inference.rollout import rollouts
from workers.inference.rollout.difference import MAX_CHARS, Meaning
from workers.inference.rollout.rollouts import (
    MOST_WORKERS,
    PATIENCE_SECONDS,
    Absences,
    CandidateAway,
    LaneReaders,
    LaneWatch,
    Rollouts,
)
from workers.inference.rollout.sampling import InvalidSample, read_sample
from workers.inference.rollout.shadow import ShadowHandler
from workers.inference.rollout.steering import Steering
from workers.inference.routing import Forward, Registry
from workers.stage.record import Failure, Output, Record

# -- rollout workers -------------------------------------------------------------------------------------------------
ID = "ro_0123456789abcdef"
ORDER = RolloutOrder(id=ID, alias="assistant", candidate="next", sample=1, per_second=10_000, canary_jobs=2, at=0)
MODELS: dict[str, str | None] = {"assistant": None, "next": None}
ELSEWHERE: dict[str, str | None] = {"assistant": None, "next": "big"}
DOCUMENT = {"documents": [{"id": "doc-1", "text": "The capital of France is Paris. " * 3}]}


def step(name: Step) -> tuple[bytes, bytes]:
    return step_record(RolloutStep(alias="assistant", rollout=ID, step=name, why="because", by="w", at=1))


def begin(worker: Worker, *steps: Step, order: RolloutOrder = ORDER) -> None:
    for each in (order_record(order), *map(step, steps)):
        worker.handler.rollouts.apply(*each)


@asynccontextmanager
async def rolling(
    *steps: Step, models: dict[str, str | None] = MODELS, order: RolloutOrder = ORDER
) -> AsyncIterator[Worker]:
    """A worker that has read the rollout's order and these steps."""
    async with working(models) as worker:
        begin(worker, *steps, order=order)
        yield worker


def job(*headers: tuple[str, bytes], **fields: Any) -> Record:
    return record({"prompt": "Say it", "model_id": "assistant", "temperature": 0, **fields}, *headers)


def topics_of(outputs: Sequence[Output]) -> list[str]:
    return [output.topic for output in outputs]


# -- routes --------------------------------------------------------------------------------------------------------
async def test_the_candidate_in_another_lane_gets_the_jobs_of_its_share_and_the_result_names_the_alias() -> None:
    async with working(ELSEWHERE) as worker:
        for steps, topic in (
            ((), TOPICS.results),
            ((Step.CANARY_100,), TOPICS.requests("big")),
            ((Step.PROMOTED,), TOPICS.requests("big")),
            ((Step.ABORTED,), TOPICS.results),
        ):
            begin(worker, *steps)
            outputs = await worker.outputs(job())
            assert outputs[0].topic == topic
            if topic == TOPICS.results:
                assert read_result(outputs[0].value).model_id == "assistant"


async def test_jobs_without_a_model_belong_to_the_alias_default() -> None:
    async with rolling(models=ELSEWHERE) as worker:
        worker.handler.rollouts.apply(*order_record(ORDER.model_copy(update={"alias": "default", "primary": "next"})))
        outputs = await worker.outputs(record({"prompt": "Say it"}))
    assert topics_of(outputs) == [TOPICS.requests("big")]


async def test_a_job_that_was_forwarded_is_not_sent_in_a_circle_by_workers_that_know_different_steps() -> None:
    moved = (names.FORWARDED, b"1")
    async with rolling(Step.CANARY_100, models=ELSEWHERE) as primary:
        assert (await primary.outputs(job(moved)))[0].topic == TOPICS.results
    async with working({"assistant": "small", "next": None}) as candidate:
        begin(candidate)  # this worker has not read the step to the canary yet
        assert (await candidate.outputs(job(moved)))[0].topic == TOPICS.results
        begin(candidate, Step.ABORTED)
        assert (await candidate.outputs(job(moved)))[0].topic == TOPICS.requests("small")


async def test_a_worker_without_the_candidate_answers_with_the_primary() -> None:
    async with rolling(Step.PROMOTED, models={"assistant": None}) as worker:
        assert read_result((await worker.outputs(job()))[0].value).outcome == "succeeded"


@given(st.none() | st.binary(max_size=60), st.none() | st.binary(max_size=60))
def test_an_unreadable_record_of_rollouts_is_skipped(key: bytes | None, value: bytes | None) -> None:
    rollouts = Rollouts(Registry(("small",), None, {}))
    rollouts.apply(key, value)
    assert not rollouts.are_any


# -- copies --------------------------------------------------------------------------------------------------------
async def test_a_sampled_job_is_answered_twice_and_copied_beside_its_result() -> None:
    async with rolling() as worker:
        outputs = await worker.outputs(job(callback_url="https://example.com/x?secret", metadata={"a": "b"}))
        assert topics_of(outputs) == [TOPICS.results, TOPICS.shadow]
        sample = read_sample(outputs[1].value)
        assert (sample.rollout, sample.candidate, sample.text, sample.noise) == (ID, "next", "Say it", 0)
        assert (sample.job.callback_url, sample.job.metadata, sample.job.temperature) == (None, {}, 0)
        assert worker.sample("postback_rollout_samples_total", result="copied") == 1
        assert worker.sample("postback_tokens_total", kind="completion") == 4


async def test_a_job_with_a_temperature_is_answered_twice_more_greedily() -> None:
    """Random answers always differ, so no candidate would seem to differ more than the primary differs from itself."""
    async with rolling() as worker:
        outputs = await worker.outputs(job(temperature=0.7))
        assert topics_of(outputs) == [TOPICS.results, TOPICS.shadow]
        assert read_sample(outputs[1].value).job.temperature == 0
        assert worker.sample("postback_tokens_total", kind="completion") == 6


async def test_a_copy_has_the_second_answer_only_if_it_differs_and_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, answered = count(), EchoEngine.generate

    async def other_each_time(self: EchoEngine, request: GenerationRequest) -> Completion:
        completion = await answered(self, request)
        return replace(completion, text=f"{completion.text} {next(numbers)}")

    async with rolling() as worker:
        same = read_sample((await worker.outputs(job()))[1].value)
        monkeypatch.setattr(EchoEngine, "generate", other_each_time)
        other = read_sample((await worker.outputs(job()))[1].value)
        long = read_sample((await worker.outputs(job(prompt="x" * MAX_CHARS)))[1].value)
    assert (same.noise, same.again) == (0, None)
    assert other.noise == long.noise == 1
    assert {other.text, other.again} == {"Say it 0", "Say it 1"}
    assert long.again is None


async def test_a_copy_has_the_grounded_prompt_and_the_evidence_but_no_secret() -> None:
    async with rolling() as worker:
        outputs = await worker.outputs(job(sources=DOCUMENT))
        sample = read_sample(outputs[1].value)
    assert "The capital of France is Paris" in (sample.job.prompt or "")
    assert sample.job.sources is None
    assert sample.profile == "default"
    assert sample.evidence is not None
    assert [source.id for source in sample.evidence.sources] == ["doc-1"]
    assert b"mark_secret" not in (outputs[1].value or b"")


@pytest.mark.parametrize("other", [{"model_id": "next"}, {"model_id": "echo"}, {"ttl_seconds": 1e-6}])
async def test_other_jobs_and_jobs_without_an_answer_are_not_copied(other: dict[str, Any]) -> None:
    async with rolling() as worker:
        assert topics_of(await worker.outputs(job(**other))) == [TOPICS.results]


async def test_a_copy_that_is_too_large_is_left_out() -> None:
    async with rolling() as worker:
        outputs = await worker.outputs(job(prompt="word " * 100_000, max_tokens=100_000))
        assert topics_of(outputs) == [TOPICS.results]
        assert worker.sample("postback_rollout_samples_total", result="too_large") == 1


async def test_a_worker_copies_no_more_jobs_in_a_second_than_ordered() -> None:
    async with rolling(order=ORDER.model_copy(update={"per_second": 0.001})) as worker:
        outputs = [topics_of(await worker.outputs(job(job_id=f"j{number}"))) for number in range(5)]
    assert [TOPICS.shadow in each for each in outputs].count(True) == 1


async def test_the_canary_reports_both_sides_and_a_request_that_the_candidate_refuses() -> None:
    async with rolling(Step.CANARY_100) as worker:
        reports = [await worker.outputs(job()), await worker.outputs(job(adapter="none-such"))]
        begin(worker, Step.CANARY_1)
        worker.handler.rollouts.apply(step(Step.CANARY_100)[0], None)
        reports.append(await worker.outputs(job()))
    # The result names the model as the job did, not as the candidate.
    assert read_result(reports[0][0].value).model_id == "assistant"
    seen = [read_comparison(outputs[-1].key, outputs[-1].value) for outputs in reports]
    assert [outputs[-1].partition for outputs in reports] == [0, 0, 0]
    assert seen[0].candidate is not None
    assert (seen[0].step, seen[0].candidate.failed, seen[0].candidate.tokens) == (Step.CANARY_100, False, 2)
    assert seen[1].candidate is not None
    assert seen[1].candidate.failed
    assert (seen[2].candidate, seen[2].primary is not None) == (None, True)


async def test_the_canary_reports_a_candidate_that_reads_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = EchoEngine.generate

    async def generate(self: EchoEngine, request: GenerationRequest) -> Completion:
        if not self.takes_images(request.model_id):
            require_texts(request, NO_IMAGES)
        return await answered(self, request)

    monkeypatch.setattr(EchoEngine, "takes_images", lambda _, model_id: model_id != "next")
    monkeypatch.setattr(EchoEngine, "generate", generate)
    seeing = [{"role": "user", "content": [image_part(data_url("image/png", PNG)), image_part("https://a.example/b")]}]
    async with rolling(Step.CANARY_100) as worker:
        outputs = await worker.outputs(job(prompt=None, messages=seeing))
    result, reported = read_result(outputs[0].value), read_comparison(outputs[-1].key, outputs[-1].value)
    assert result.error is not None and result.error.message == f"messages.0.content.0: {NO_IMAGES}"
    assert reported.candidate is not None and reported.candidate.failed


# -- the candidate -------------------------------------------------------------------------------------------------
class Candidate(EchoEngine):
    """An engine that answers `says` if set, or refuses if `refuses` is true; `moves` scales embeddings and scores."""

    says: str | None = None
    moves = 1.0
    refuses = False

    async def generate(self, request: GenerationRequest) -> Completion:
        if self.refuses:
            raise RequestRejected("prompt", "no")
        echoed = await super().generate(request)
        if echoed.pooled is not None:
            rows = tuple(tuple(number * self.moves for number in row) for row in echoed.pooled.rows)
            return replace(echoed, pooled=replace(echoed.pooled, rows=rows))
        return Completion(self.says or echoed.text, "stop", 1, 2)


class Shadow:
    """A shadow worker's handler whose engine serves the model `next`."""

    def __init__(self, serves: str = "next", meaning: Meaning | None = None) -> None:
        self.metrics = Metrics()
        self.engine = Candidate(EchoSettings(), self.metrics)
        registry = Registry((serves,), None, {})
        self.rollouts = Rollouts(registry)
        self.handler = ShadowHandler(
            self.engine, Profiles.load(), self.rollouts, registry.serves, TOPICS, CLOCK, self.metrics, meaning
        )
        self.rollouts.apply(*order_record(ORDER))

    async def comparisons(self, value: bytes | None) -> list[Comparison]:
        outputs = await self.handler.handle(Record(TOPICS.shadow, 1, 5, value or b""))
        assert {(output.topic, output.partition) for output in outputs} <= {(TOPICS.comparisons, 0)}
        return [read_comparison(output.key, output.value) for output in outputs]

    async def compared(self, value: bytes | None) -> Comparison:
        [comparison] = await self.comparisons(value)
        return comparison


async def sample_of(**fields: Any) -> bytes:
    async with rolling() as worker:
        [*_, output] = await worker.outputs(job(**fields))
    assert output.topic == TOPICS.shadow
    return output.value or b""


async def test_a_comparison_of_equal_answers_has_neither_text_and_one_of_different_answers_has_both() -> None:
    shadow, value = Shadow(), await sample_of(job_id="j1")
    equal = await shadow.compared(value)
    assert (equal.job_id, equal.differs, equal.noise, equal.primary_text) == ("j1", 0, 0, None)
    shadow.engine.says = "I cannot say it"
    other = await shadow.compared(value)
    assert (other.differs, other.primary_text, other.candidate_text) == (1, "Say it", "I cannot say it")
    assert other.candidate is not None
    assert other.candidate.refused
    shadow.engine.refuses = True
    refused = await shadow.compared(value)
    assert (refused.differs, refused.candidate) == (1, ObservedAnswer(failed=True))


@pytest.mark.parametrize("field", KIND_JOBS)
async def test_numbers_of_texts_are_compared_by_value_and_are_no_failure(field: str) -> None:
    async with rolling() as worker:
        outputs = await worker.outputs(record({"model_id": "assistant", **KIND_JOBS[field]}))
        assert worker.sample("postback_rollout_samples_total", result="copied") == 1
    shadow = Shadow()
    shadow.engine.moves = 1.001
    equal = await shadow.compared(outputs[-1].value)
    shadow.engine.moves = 2
    other = await shadow.compared(outputs[-1].value)
    assert (equal.differs, equal.noise, other.differs) == (0, 0, 1)
    assert [each and each.failed for each in (equal.primary, equal.candidate)] == [False, False]


async def test_the_candidates_citations_are_checked_against_the_primarys_evidence() -> None:
    shadow, value = Shadow(), await sample_of(sources=DOCUMENT)
    shadow.engine.says = "The capital of France is Paris [1]."
    good = await shadow.compared(value)
    shadow.engine.says = "The moon is made of green cheese [7]."
    bad = await shadow.compared(value)
    assert (good.candidate is not None and good.candidate.unsupported, good.profile) == (False, "default")
    assert bad.candidate is not None
    assert bad.candidate.unsupported


async def test_samples_of_rollouts_that_are_over_and_of_other_candidates_are_thrown_away() -> None:
    value, other, over = await sample_of(), Shadow(serves="something"), Shadow()
    over.rollouts.apply(*step(Step.CANARY_1))
    assert await other.comparisons(value) == []
    assert await over.comparisons(value) == []


def test_a_sample_that_killed_its_worker_counts_against_the_candidate() -> None:
    value, shadow = asyncio.run(sample_of()), Shadow()
    failure = Failure("worker_killed", "it killed its worker", 3)
    [output] = shadow.handler.give_up(Record(TOPICS.shadow, 1, 5, value), failure)
    seen = read_comparison(output.key, output.value)
    assert (seen.differs, seen.candidate) == (1, ObservedAnswer(failed=True))
    assert shadow.handler.give_up(Record(TOPICS.shadow, 1, 5, b"{"), failure) == []


PARTS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"rollout": st.just(ID), "job": st.dictionaries(st.sampled_from(["prompt", "model_id", "stop"]), st.text())},
    optional={"evidence": st.none() | st.text(), "noise": st.floats(), "profile": st.text(), "primary": st.just({})},
)


@given(st.binary(max_size=200) | PARTS.map(lambda parts: json.dumps(parts).encode()))
def test_any_bytes_on_the_shadow_topic_give_a_comparison_or_nothing(value: bytes) -> None:
    asyncio.run(Shadow().comparisons(value))
    try:
        read_sample(value)
    except InvalidSample as invalid:
        assert str(invalid) == "the value is not a sample of a rollout"  # the error quotes no part of the record


# -- rollout steering ------------------------------------------------------------------------------------------------
class Steered:
    """A worker's steering; each step that it writes is read back at once."""

    def __init__(self) -> None:
        self.rollouts = Rollouts(Registry(("small",), None, {}))
        self.metrics = Metrics()
        self.written: list[RolloutStep] = []
        self.steering = Steering(self.rollouts, "w1", CLOCK, self.metrics, self.written.append)

    def observe(self, number: int, **fields: Any) -> None:
        seen = ObservedAnswer(infer_ms=100, tokens=20)
        kept = {"step": Step.SHADOW, "primary": seen, "candidate": seen, **fields}
        said = Comparison(rollout=ID, job_id="j", **kept)
        for _ in range(number):
            self.steering.apply(ID.encode(), write_comparison(said))


def test_a_decided_rollout_gets_its_next_step_once() -> None:
    steered = Steered()
    steered.rollouts.apply(*order_record(ORDER))
    steered.observe(133)
    assert steered.written == []
    steered.observe(30)
    assert [(each.step, each.by) for each in steered.written] == [(Step.CANARY_1, "w1")]
    steered.rollouts.apply(*step_record(steered.written[0]))
    steered.observe(2, step=Step.CANARY_1, primary=None)
    assert steered.written[-1].step is Step.CANARY_10
    value = steered.metrics.registry.get_sample_value
    assert value("postback_rollout_share", {"alias": "assistant"}) == 0.01
    assert (value("postback_rollout_e_value_log10", {"alias": "assistant", "claim": "equal"}) or 0) > 1.3


def test_comparisons_that_are_read_before_their_order_count_too() -> None:
    steered = Steered()
    steered.observe(20, differs=1)
    steered.rollouts.apply(*order_record(ORDER))
    assert [each.step for each in steered.written] == [Step.ABORTED]


def test_a_rollout_that_is_over_gets_no_further_step() -> None:
    steered = Steered()
    for each in (order_record(ORDER), step(Step.ABORTED)):
        steered.rollouts.apply(*each)
    steered.observe(200)
    assert steered.written == []


@given(st.none() | st.just(ID.encode()) | st.binary(max_size=30), st.none() | st.binary(max_size=60))
def test_any_bytes_among_the_comparisons_are_skipped(key: bytes | None, value: bytes | None) -> None:
    steered = Steered()
    steered.rollouts.apply(*order_record(ORDER))
    steered.steering.apply(key, value)
    assert steered.written == []


# -- rollout absence -------------------------------------------------------------------------------------------------
FAILED = ObservedAnswer(failed=True)


class Away:
    """Makes the models in `failures` fail as often as stated, and counts all requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: EngineUnavailable | None = None) -> None:
        self.failures: dict[str, float] = {"next": math.inf}
        self.asked: list[str | None] = []
        answered = EchoEngine.generate
        monkeypatch.setattr(rollouts, "PATIENCE_SECONDS", 0.0)

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
        # In an earlier version the job was counted and timed twice, and the exporter wanted more workers.
        counts = [worker.sample("postback_job_seconds_count", phase=phase) for phase in ("queued", "enrich", "infer")]
        assert counts == [1, 0, 1]
    result = read_result(outputs[0].value)
    assert (result.outcome, result.text, result.model_id) == (Outcome.SUCCEEDED, "Say it", "assistant")
    assert away.asked == ["next", "assistant"]
    assert [each for each in seen if each is not None] == [FAILED]
    assert [each.primary is not None for each in reports(outputs)] == [True, False]


async def test_the_primary_answers_with_the_sources_that_were_read_for_a_candidate_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Away(monkeypatch)
    async with rolling(Step.CANARY_100) as worker:
        outputs = await worker.outputs(job(sources=DOCUMENT))
        counts = [worker.sample("postback_job_seconds_count", phase=phase) for phase in ("queued", "enrich", "infer")]
    result = read_result(outputs[0].value)
    assert (result.outcome, result.sources, counts) == (Outcome.SUCCEEDED, ["doc-1"], [1, 1, 1])
    assert result.timings is not None
    assert result.timings.enrich_ms > 0


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
    async with rolling(Step.CANARY_100, models={"assistant": "small", "next": None}) as worker:
        outputs = await worker.outputs(job((names.FORWARDED, b"1")))
    assert (outputs[0].topic, away.asked) == (TOPICS.requests("small"), ["next"])
    assert dict(outputs[0].headers or ())[names.FORWARDED] == b"2"
    assert [each.candidate for each in reports(outputs)] == [FAILED]
    async with rolling(Step.CANARY_100, models=ELSEWHERE) as primary:
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
    async with rolling(Step.CANARY_1) as worker:
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
    assert away.value.primary == "assistant"
    with pytest.raises(CandidateAway):
        absences.failed(received(), "next", 1000)


def test_a_job_that_ends_soon_waits_for_half_of_its_life() -> None:
    absences, clock = trial(Step.CANARY_1)
    assert absences.failed(received(), "next", 6) == 3
    clock.sleep(3)
    with pytest.raises(CandidateAway):
        absences.failed(received(), "next", 6)


@pytest.mark.parametrize(
    ("alias", "asked", "model"),
    [
        ("assistant", received(alias=None), "next"),
        ("assistant", received("small"), "small"),
        ("assistant", received(), "larger"),
        ("unknown", received(alias="unknown"), "next"),
    ],
    ids=["by its own name", "the primary", "an escalation", "no worker is known for the primary"],
)
def test_a_job_waits_for_every_model_but_a_candidate_of_a_known_primary(
    alias: str, asked: ReceivedJob, model: str
) -> None:
    absences, clock = trial(Step.CANARY_1, alias=alias)
    for _ in range(3):
        assert absences.failed(asked, model, 1000) == math.inf
        clock.sleep(PATIENCE_SECONDS)


def test_a_job_without_a_model_goes_back_from_the_candidates_lane_to_the_shared_one() -> None:
    absences, clock = trial(alias=DEFAULT_ALIAS, lane="big")
    asked = replace(received(), alias=DEFAULT_ALIAS)
    absences.failed(asked, "next", 1000)
    clock.sleep(PATIENCE_SECONDS)
    with pytest.raises(CandidateAway) as away:
        absences.failed(asked, "next", 1000)
    assert away.value.primary is None
    lane, shared = Registry(("next",), "big", {}), Registry(("small",), None, {"next": "big"})
    assert lane.route(None, "1") == Forward(None, 2)
    assert shared.route(None, "2") is None
    assert lane.route(None, None) is None  # the producer itself chose the lane


# -- rollout lanes ---------------------------------------------------------------------------------------------------
CANARY = (Step.CANARY_1, Step.CANARY_10, Step.CANARY_50, Step.CANARY_100)
REPLICAS = st.sampled_from(["w1", "w2", "w3"])
LANES = st.sampled_from([None, "big", "small"])
EVENTS = st.lists(
    st.tuples(st.sampled_from(["said", "ended", "passed"]), REPLICAS, LANES, st.floats(0, 1.5 * LIVE_SECONDS)),
    max_size=30,
)
"""Events in turn: a worker announces its lane, a worker ends, or seconds pass."""
FIELDS = st.sampled_from(["replica", "lane", "models", "at", "more"])
ANYTHING = st.none() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=3), max_size=2)
NOISE = st.binary(max_size=60) | st.dictionaries(FIELDS, ANYTHING).map(lambda changed: json.dumps(changed).encode())


def said(replica: str, lane: str | None) -> tuple[bytes, bytes]:
    """A record with the announcement of a worker that reads this lane."""
    return worker_key(replica), write_announcement(announcement(replica, lane, ["next"], 0))


@pytest.mark.parametrize("step", CANARY)
async def test_the_primary_answers_each_job_of_the_canary_while_no_worker_reads_the_candidates_lane(step: Step) -> None:
    asked: list[str | None] = []

    def is_read(lane: str | None) -> bool:
        asked.append(lane)
        return False

    jobs = [job(job_id=f"j{number}") for number in range(1000)]
    async with rolling(step, models=ELSEWHERE) as worker:
        before = [(await worker.outputs(each))[0].topic for each in jobs]
        worker.handler.rollouts.is_read = is_read
        after = [(await worker.outputs(each))[0].topic for each in jobs]
    assert TOPICS.requests("big") in before
    assert {*after} == {TOPICS.results}
    assert {*asked} == {"big"}


async def test_a_promoted_models_jobs_go_to_its_lane_even_if_no_worker_reads_the_lane() -> None:
    async with working(ELSEWHERE) as worker:
        worker.handler.rollouts.is_read = lambda lane: False
        begin(worker, Step.PROMOTED)
        assert (await worker.outputs(job()))[0].topic == TOPICS.requests("big")


async def test_a_worker_answers_for_its_own_candidate_whatever_is_announced() -> None:
    async with working({"assistant": "small", "next": None}) as worker:
        worker.handler.rollouts.is_read = lambda lane: False
        begin(worker, Step.CANARY_100)
        assert (await worker.outputs(job()))[0].topic == TOPICS.results
        assert (await worker.outputs(job((names.FORWARDED, b"1"))))[0].topic == TOPICS.results


# -- announcements -------------------------------------------------------------------------------------------------
@given(EVENTS, st.lists(st.tuples(st.none() | st.binary(max_size=3), NOISE), max_size=5))
@settings(max_examples=drawn(100))
def test_a_lane_is_read_while_a_worker_announced_it_last_within_three_minutes_and_noise_changes_nothing(
    events: list[tuple[str, str, str | None, float]], noise: list[tuple[bytes | None, bytes]]
) -> None:
    clock = SetClock()
    readers = LaneReaders(clock)
    known: dict[str, tuple[str | None, float]] = {}
    for event, replica, lane, seconds in events:
        if event == "said":
            readers.apply(*said(replica, lane))
            known[replica] = lane, clock.now
        elif event == "ended":
            readers.apply(worker_key(replica), None)
            known.pop(replica, None)
        else:
            clock.now += seconds
        for key, value in noise:
            readers.apply(key, value)
        read = {lane for lane, at in known.values() if clock.now - at <= LIVE_SECONDS}
        assert {lane for lane in (None, "big", "small") if readers.has(lane)} == read


def test_workers_beyond_the_cap_are_kept_once_others_have_ended() -> None:
    clock = SetClock()
    readers = LaneReaders(clock)
    for number in range(MOST_WORKERS):
        readers.apply(*said(f"w{number}", None))
    readers.apply(*said("late", "big"))
    assert not readers.has("big")
    readers.apply(*said("w0", "small"))  # a known worker may still change its lane
    assert readers.has("small")
    clock.now += LIVE_SECONDS + 1
    readers.apply(*said("late", "big"))
    assert (readers.has("big"), readers.has(None)) == (True, False)


def test_every_lane_counts_as_read_until_the_announcements_are_known() -> None:
    watch = LaneWatch(KafkaSettings(), SetClock())
    assert watch.is_read("big")
    assert watch.reasons() == []
