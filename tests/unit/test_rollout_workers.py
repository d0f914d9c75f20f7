"""A rollout in workers: routes of an alias's jobs, copies of jobs, and the candidate's comparisons."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.kind_examples import KIND_JOBS
from schemas import topics as names
from schemas.codec import read_result
from schemas.images import data_url
from schemas.rollout.comparison import Comparison, ObservedAnswer, read_comparison
from schemas.rollout.facts import RolloutOrder, RolloutStep, Step, order_record, step_record
from telemetry.metrics import Metrics
from tests.handlers import CLOCK, TOPICS
from tests.images import PNG, image_part
from tests.unit.echo_worker import Worker, record, working
from workers.engines.base import NO_IMAGES, Completion, GenerationRequest, RequestRejected, require_texts
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.answering.profile import Profiles
from workers.inference.registry import Registry
from workers.inference.rollout.candidate import ShadowHandler
from workers.inference.rollout.meaning import MAX_CHARS, Meaning
from workers.inference.rollout.rollouts import Rollouts
from workers.inference.rollout.sample import InvalidSample, read_sample
from workers.stage.record import Failure, Output, Record

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


async def test_a_share_of_ten_percent_takes_about_a_tenth_of_the_jobs() -> None:
    async with working(ELSEWHERE) as worker:
        begin(worker, Step.CANARY_10)
        sent = [await worker.outputs(job(job_id=f"j{number}")) for number in range(500)]
    assert 25 <= topics_of([outputs[0] for outputs in sent]).count(TOPICS.requests("big")) <= 80


async def test_jobs_without_a_model_belong_to_the_alias_default() -> None:
    async with working(ELSEWHERE) as worker:
        begin(worker)
        worker.handler.rollouts.apply(*order_record(ORDER.model_copy(update={"alias": "default", "primary": "next"})))
        outputs = await worker.outputs(record({"prompt": "Say it"}))
    assert topics_of(outputs) == [TOPICS.requests("big")]


async def test_a_job_that_was_forwarded_is_not_sent_in_a_circle_by_workers_that_know_different_steps() -> None:
    moved = (names.FORWARDED, b"1")
    async with working(ELSEWHERE) as primary:
        begin(primary, Step.CANARY_100)
        assert (await primary.outputs(job(moved)))[0].topic == TOPICS.results
    async with working({"assistant": "small", "next": None}) as candidate:
        begin(candidate)  # this worker has not read the step to the canary yet
        assert (await candidate.outputs(job(moved)))[0].topic == TOPICS.results
        begin(candidate, Step.ABORTED)
        assert (await candidate.outputs(job(moved)))[0].topic == TOPICS.requests("small")


async def test_a_worker_without_the_candidate_answers_with_the_primary() -> None:
    async with working({"assistant": None}) as worker:
        begin(worker, Step.PROMOTED)
        assert read_result((await worker.outputs(job()))[0].value).outcome == "succeeded"


@given(st.none() | st.binary(max_size=60), st.none() | st.binary(max_size=60))
def test_an_unreadable_record_of_rollouts_is_skipped(key: bytes | None, value: bytes | None) -> None:
    rollouts = Rollouts(Registry(("small",), None, {}))
    rollouts.apply(key, value)
    assert not rollouts.are_any


# -- copies --------------------------------------------------------------------------------------------------------


async def test_a_sampled_job_is_answered_twice_and_copied_beside_its_result() -> None:
    async with working(MODELS) as worker:
        begin(worker)
        outputs = await worker.outputs(job(callback_url="https://example.com/x?secret", metadata={"a": "b"}))
        assert topics_of(outputs) == [TOPICS.results, TOPICS.shadow]
        sample = read_sample(outputs[1].value)
        assert (sample.rollout, sample.candidate, sample.text, sample.noise) == (ID, "next", "Say it", 0)
        assert (sample.job.callback_url, sample.job.metadata, sample.job.temperature) == (None, {}, 0)
        assert worker.sample("postback_rollout_samples_total", result="copied") == 1
        assert worker.sample("postback_tokens_total", kind="completion") == 4


async def test_a_job_with_a_temperature_is_answered_twice_more_greedily() -> None:
    """Random answers always differ, so no candidate would seem to differ more than the primary differs from itself."""
    async with working(MODELS) as worker:
        begin(worker)
        outputs = await worker.outputs(job(temperature=0.7))
        assert topics_of(outputs) == [TOPICS.results, TOPICS.shadow]
        assert read_sample(outputs[1].value).job.temperature == 0
        assert worker.sample("postback_tokens_total", kind="completion") == 6


async def test_a_copy_has_the_second_answer_only_if_it_differs_and_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, answered = count(), EchoEngine.generate

    async def other_each_time(self: EchoEngine, request: GenerationRequest) -> Completion:
        completion = await answered(self, request)
        return replace(completion, text=f"{completion.text} {next(numbers)}")

    async with working(MODELS) as worker:
        begin(worker)
        same = read_sample((await worker.outputs(job()))[1].value)
        monkeypatch.setattr(EchoEngine, "generate", other_each_time)
        other = read_sample((await worker.outputs(job()))[1].value)
        long = read_sample((await worker.outputs(job(prompt="x" * MAX_CHARS)))[1].value)
    assert (same.noise, same.again) == (0, None)
    assert other.noise == long.noise == 1
    assert {other.text, other.again} == {"Say it 0", "Say it 1"}
    assert long.again is None


async def test_a_copy_has_the_grounded_prompt_and_the_evidence_but_no_secret() -> None:
    async with working(MODELS) as worker:
        begin(worker)
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
    async with working(MODELS) as worker:
        begin(worker)
        assert topics_of(await worker.outputs(job(**other))) == [TOPICS.results]


async def test_a_copy_that_is_too_large_is_left_out() -> None:
    async with working(MODELS) as worker:
        begin(worker)
        outputs = await worker.outputs(job(prompt="word " * 100_000, max_tokens=100_000))
        assert topics_of(outputs) == [TOPICS.results]
        assert worker.sample("postback_rollout_samples_total", result="too_large") == 1


async def test_a_worker_copies_no_more_jobs_in_a_second_than_ordered() -> None:
    async with working(MODELS) as worker:
        begin(worker, order=ORDER.model_copy(update={"per_second": 0.001}))
        outputs = [topics_of(await worker.outputs(job(job_id=f"j{number}"))) for number in range(5)]
    assert [TOPICS.shadow in each for each in outputs].count(True) == 1


async def test_the_canary_reports_both_sides_and_a_request_that_the_candidate_refuses() -> None:
    async with working(MODELS) as worker:
        begin(worker, Step.CANARY_100)
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
    async with working(MODELS) as worker:
        begin(worker, Step.CANARY_100)
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

    async def compared(self, value: bytes | None) -> Comparison | None:
        outputs = await self.handler.handle(Record(TOPICS.shadow, 1, 5, value or b""))
        for output in outputs:
            assert (output.topic, output.partition) == (TOPICS.comparisons, 0)
            return read_comparison(output.key, output.value)
        return None


async def sample_of(**fields: Any) -> bytes:
    async with working(MODELS) as worker:
        begin(worker)
        [*_, output] = await worker.outputs(job(**fields))
    assert output.topic == TOPICS.shadow
    return output.value or b""


async def test_a_comparison_of_equal_answers_has_neither_text_and_one_of_different_answers_has_both() -> None:
    shadow, value = Shadow(), await sample_of(job_id="j1")
    equal = await shadow.compared(value)
    assert equal is not None
    assert (equal.job_id, equal.differs, equal.noise, equal.primary_text) == ("j1", 0, 0, None)
    shadow.engine.says = "I cannot say it"
    other = await shadow.compared(value)
    assert other is not None
    assert (other.differs, other.primary_text, other.candidate_text) == (1, "Say it", "I cannot say it")
    assert other.candidate is not None
    assert other.candidate.refused
    shadow.engine.refuses = True
    refused = await shadow.compared(value)
    assert refused is not None
    assert (refused.differs, refused.candidate) == (1, ObservedAnswer(failed=True))


@pytest.mark.parametrize("field", KIND_JOBS)
async def test_numbers_of_texts_are_compared_by_value_and_are_no_failure(field: str) -> None:
    async with working(MODELS) as worker:
        begin(worker)
        outputs = await worker.outputs(record({"model_id": "assistant", **KIND_JOBS[field]}))
        assert worker.sample("postback_rollout_samples_total", result="copied") == 1
    shadow = Shadow()
    shadow.engine.moves = 1.001
    equal = await shadow.compared(outputs[-1].value)
    shadow.engine.moves = 2
    other = await shadow.compared(outputs[-1].value)
    assert equal is not None
    assert other is not None
    assert (equal.differs, equal.noise, other.differs) == (0, 0, 1)
    assert [each and each.failed for each in (equal.primary, equal.candidate)] == [False, False]


async def test_the_candidates_citations_are_checked_against_the_primarys_evidence() -> None:
    shadow, value = Shadow(), await sample_of(sources=DOCUMENT)
    shadow.engine.says = "The capital of France is Paris [1]."
    good = await shadow.compared(value)
    shadow.engine.says = "The moon is made of green cheese [7]."
    bad = await shadow.compared(value)
    assert good is not None
    assert bad is not None
    assert (good.candidate is not None and good.candidate.unsupported, good.profile) == (False, "default")
    assert bad.candidate is not None
    assert bad.candidate.unsupported


async def test_samples_of_rollouts_that_are_over_and_of_other_candidates_are_thrown_away() -> None:
    value, other, over = await sample_of(), Shadow(serves="something"), Shadow()
    over.rollouts.apply(*step(Step.CANARY_1))
    assert await other.compared(value) is None
    assert await over.compared(value) is None


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
    asyncio.run(Shadow().compared(value))
    try:
        read_sample(value)
    except InvalidSample as invalid:
        assert str(invalid) == "the value is not a sample of a rollout"  # the error quotes no part of the record
