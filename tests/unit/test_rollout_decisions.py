"""Rollouts: the decisions of a table, and the workers that follow it, compare answers, and route requests."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from math import nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import topics as names
from schemas.codec import Origin, ReceivedJob, read_result
from schemas.images import data_url
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.rollout.comparison import (
    Comparison,
    InvalidComparison,
    ObservedAnswer,
    is_refusal,
    read_comparison,
    write_comparison,
)
from schemas.rollout.e_process import DECIDED, EProcess
from schemas.rollout.facts import (
    DEFAULT_ALIAS,
    InvalidRollout,
    RolloutOrder,
    RolloutStep,
    RolloutTable,
    Step,
    order_record,
    share_of,
    step_key,
    step_record,
)
from schemas.rollout.judge import MOST_DIFFERENT, Judge
from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, announcement, worker_key, write_announcement
from scripts.publish.job_examples import KIND_JOBS
from telemetry.hand_clock import HandClock, SetClock
from telemetry.metrics import Metrics
from tests.any_json import any_json
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
from workers.inference.rollout.difference import MAX_CHARS, Meaning, Said, difference, similarity, words
from workers.inference.rollout.rollouts import (
    MOST_WORKERS,
    PATIENCE_SECONDS,
    Absences,
    CandidateAway,
    LaneReaders,
    LaneWatch,
    Rollouts,
)
from workers.inference.rollout.sampling import WITHOUT_PROFILE, InvalidSample, read_sample
from workers.inference.rollout.shadow import ShadowHandler
from workers.inference.rollout.steering import Steering
from workers.inference.routing import Forward, Registry
from workers.stage.record import Failure, Output, Record

# -- rollout decisions -----------------------------------------------------------------------------------------------
ID, OTHER = "ro_0123456789abcdef", "ro_ffffffffffffffff"
ORDER = RolloutOrder(id=ID, alias="a", candidate="c", canary_jobs=5, max_jobs=400, at=0)
VALUES = st.lists(st.floats(-1, 1), max_size=300)
FINE = ObservedAnswer(infer_ms=100, tokens=20)


def compared(differs: float = 0.0, noise: float = 0.0, profile: str = "none", **candidate: Any) -> Comparison:
    seen = ObservedAnswer(infer_ms=candidate.pop("infer_ms", 100), tokens=candidate.pop("tokens", 20), **candidate)
    fields = {"differs": differs, "noise": noise, "profile": profile, "primary": FINE, "candidate": seen}
    return Comparison(rollout=ID, step=Step.SHADOW, job_id="j", **fields)


def reported(step: Step, **candidate: Any) -> Comparison:
    return Comparison(rollout=ID, step=step, job_id="j", candidate=FINE.model_copy(update=candidate))


def judge_of(copies: int, **order: Any) -> Judge:
    """A judge that has taken this number of equal copies; `order` changes the rollout's order."""
    judge = Judge(ORDER.model_copy(update=order))
    for _ in range(copies):
        judge.take(compared())
    return judge


def decided(judge: Judge, said: Comparison, most: int, step: Step = Step.SHADOW) -> tuple[str, int]:
    """Repeat a comparison until the judge decides; return the decided step and the number of comparisons."""
    for number in range(1, most + 1):
        judge.take(said)
        if (decision := judge.decision(step)) is not None:
            return decision.step, number
    return "undecided", most


# -- the e-process -------------------------------------------------------------------------------------------------
@given(st.floats(-0.9, 0.9), VALUES)
def test_e_values_are_never_negative_and_begin_at_one(bound: float, values: list[float]) -> None:
    evidence = EProcess(bound)
    assert (evidence.below, evidence.above) == (1.0, 1.0)
    for value in values:
        evidence.take(value)
        assert evidence.below > 0
        assert evidence.above > 0
    assert evidence.count == len(values)


@given(st.floats(-0.9, 0.9), st.lists(st.floats(-1, 1), max_size=60), st.floats(0, 1))
def test_a_fair_game_gains_nothing_on_average(bound: float, values: list[float], up: float) -> None:
    """The property behind Ville's inequality: if the values' mean is `bound`, no bet changes the expected e-value."""
    evidence = EProcess(bound)
    for value in values:
        evidence.take(value)
    high, low = bound + up * (1 - bound), bound - up * (1 + bound)
    weight = (bound - low) / (high - low) if high > low else 1.0
    after = []
    for value in (high, low):
        next_ = EProcess(bound)
        for earlier in values:
            next_.take(earlier)
        next_.take(max(-1.0, min(1.0, value)))
        after.append((next_.below, next_.above))
    for side, now in enumerate((evidence.below, evidence.above)):
        mean = weight * after[0][side] + (1 - weight) * after[1][side]
        assert mean == pytest.approx(now, rel=1e-6)


@pytest.mark.parametrize(
    ("bound", "value"), [*((0.03, value) for value in (-1.01, 1.01, nan)), (-1, 0), (1, 0), (nan, 0)]
)
def test_a_value_or_a_bound_out_of_range_is_refused(bound: float, value: float) -> None:
    with pytest.raises(ValueError, match=r"from -1 to 1|bound must be"):
        EProcess(bound).take(value)


def first_crossing(values: np.ndarray[Any, Any], bound: float) -> tuple[list[str], list[int]]:
    """The first decided claim of each rollout, and the number of its values until then.

    A row of `values` is a rollout. The bets are those of `EProcess`.
    """
    runs, most = values.shape
    total, squares = np.zeros(runs), np.full(runs, 0.25)
    logs = {"promote": np.zeros(runs), "abort": np.zeros(runs)}
    ends, at = np.full(runs, "undecided", dtype="<U9"), np.full(runs, most)
    for number in range(most):
        mean = total / (number + 1)
        lead = mean - bound
        bet = lead / (squares / (number + 1) + lead**2)
        gain = values[:, number] - bound
        logs["abort"] += np.log1p(np.clip(bet, 0, 0.75 / (1 + bound)) * gain)
        logs["promote"] += np.log1p(np.clip(-bet, 0, 0.75 / (1 - bound)) * -gain)
        total += values[:, number]
        squares += (values[:, number] - total / (number + 2)) ** 2
        for claim, log in logs.items():
            new = (ends == "undecided") & (log >= np.log(DECIDED))
            ends[new], at[new] = claim, number + 1
    return [str(end) for end in ends], [int(each) for each in at]


def simulated(differs: float, noise: float, runs: int = 1000, most: int = 2000) -> tuple[Counter[str], float]:
    """The number of simulated rollouts by their end, and the median number of jobs until the decision."""
    rng = np.random.default_rng(20_240_501)
    once, again = rng.random((runs, most)) < differs + noise, rng.random((runs, most)) < noise
    ends, at = first_crossing(once.astype(float) - again.astype(float), MOST_DIFFERENT)
    return Counter(ends), float(np.median(at))


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=200))
@settings(max_examples=drawn(25))
def test_the_simulation_plays_as_the_e_process_does(values: list[float]) -> None:
    evidence, end, at = EProcess(0.03), "undecided", len(values)
    for number, value in enumerate(values, start=1):
        evidence.take(value)
        if end == "undecided" and max(evidence.below, evidence.above) >= DECIDED:
            end, at = ("abort" if evidence.above >= DECIDED else "promote"), number
    assert first_crossing(np.array([values]), 0.03) == ([end], [at])


@pytest.mark.parametrize(
    ("differs", "promoted", "aborted", "jobs"),
    [
        (0, range(990, 1001), range(1), 250),  # the same weights are promoted soon
        (0.1, range(51), range(990, 1001), 170),  # a model that differs by a tenth is aborted soon
        (MOST_DIFFERENT, range(51), range(51), 2001),  # the promised rate of errors is 1 / DECIDED
    ],
)
def test_a_thousand_rollouts_end_soon_and_at_most_one_in_twenty_by_mistake(
    differs: float, promoted: range, aborted: range, jobs: int
) -> None:
    ends, median = simulated(differs=differs, noise=0.01)
    assert ends["promote"] in promoted
    assert ends["abort"] in aborted
    assert median < jobs


# -- the judge -----------------------------------------------------------------------------------------------------
def test_equal_answers_lead_to_the_canary_and_different_ones_to_an_abort() -> None:
    assert decided(Judge(ORDER), compared(), 400) == (Step.CANARY_1, 134)
    step, number = decided(Judge(ORDER), compared(differs=1), 400)
    assert step == Step.ABORTED
    assert number < 15


def test_noise_of_the_primary_is_not_held_against_the_candidate() -> None:
    step, _ = decided(Judge(ORDER), compared(differs=1, noise=1), 400)
    assert step == Step.CANARY_1


def test_an_undecided_rollout_is_aborted_at_its_last_job() -> None:
    judge = Judge(ORDER)
    ends = []
    for number in range(400):
        judge.take(compared(differs=float(number % 33 == 16)))
        ends.append(judge.decision(Step.SHADOW))
    assert ends[:399] == [None] * 399
    assert ends[399] is not None
    assert (ends[399].step, ends[399].why) == (Step.ABORTED, "undecided after 400 jobs: profile none")


def test_every_profile_must_pass_and_one_that_differs_aborts() -> None:
    judge = Judge(ORDER)
    for _ in range(140):
        judge.take(compared(profile="medical"))
    judge.take(compared(profile="finance"))
    assert judge.decision(Step.SHADOW) is None
    for _ in range(15):
        judge.take(compared(profile="finance", differs=1))
    decision = judge.decision(Step.SHADOW)
    assert decision is not None
    assert decision.step is Step.ABORTED
    assert decision.why.startswith("profile finance: the answers differ")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"failed": True}, "more failures than the primary has"),
        ({"not_json": True}, "more answers that are not JSON than the primary has"),
        ({"refused": True}, "more refusals than the primary has"),
        ({"cut": True}, "more answers cut at max_tokens than the primary has"),
        ({"unsupported": True}, "more unsupported citations than the primary has"),
        ({"infer_ms": 2000}, "more slow answers than the primary has"),
        ({"tokens": 60}, "more longer answers than the primary has"),
    ],
)
@pytest.mark.parametrize("step", [Step.SHADOW, Step.CANARY_10, Step.CANARY_100])
def test_each_guard_by_itself_can_abort_in_each_step(fault: dict[str, Any], why: str, step: Step) -> None:
    judge = judge_of(30, canary_jobs=1000)
    assert judge.decision(step) is None
    said = compared(**fault) if step is Step.SHADOW else reported(step, **fault)
    end, number = decided(judge, said, 100, step)
    assert end == Step.ABORTED
    assert number < 60
    decision = judge.decision(step)
    assert decision is not None
    assert why in decision.why


@pytest.mark.parametrize("copies", [0, 140, 2000])
def test_a_candidate_that_fails_from_the_canary_on_is_aborted_at_once_however_good_its_copies_were(copies: int) -> None:
    judge = judge_of(copies, canary_jobs=50)
    assert decided(judge, reported(Step.CANARY_1, failed=True), 50, Step.CANARY_1) == (Step.ABORTED, 7)


def test_a_candidate_may_be_as_slow_as_the_order_says() -> None:
    outcomes = {}
    for slower in (1.5, 19.0, 21.0):
        outcomes[slower], _ = decided(judge_of(30, slower=slower), compared(infer_ms=2000), 200)
    assert outcomes == {1.5: "aborted", 19.0: "aborted", 21.0: "canary-1"}


def test_a_candidate_like_the_primary_goes_from_share_to_share() -> None:
    judge, step = judge_of(30), Step.CANARY_1
    way = []
    while not step.is_over:
        end, number = decided(judge, reported(step), 100, step)
        way.append((str(end), number))
        step = Step(end)
    assert way == [("canary-10", 5), ("canary-50", 5), ("canary-100", 5), ("promoted", 5)]
    assert judge.decision(Step.PROMOTED) is None


def test_a_flood_of_profiles_takes_bounded_memory() -> None:
    judge = Judge(ORDER)
    for number in range(300):
        judge.take(compared(profile=f"p{number}"))
    assert len(judge.profiles) == 100


@given(st.lists(st.builds(
    lambda differs, noise, primary, candidate, profile, step: Comparison(
        rollout=ID, step=step, job_id="j", differs=differs, noise=noise, primary=primary, candidate=candidate,
        profile=profile),
    st.floats(0, 1), st.floats(0, 1), *[st.none() | st.builds(
        ObservedAnswer, failed=st.booleans(), infer_ms=st.floats(0, 1e300), tokens=st.integers(0, 2**31 - 1))] * 2,
    st.sampled_from(["a", "b"]), st.sampled_from(Step),
), max_size=80), st.sampled_from(Step))  # fmt: skip
def test_any_readable_comparisons_lead_to_a_step_or_to_none(said: list[Comparison], step: Step) -> None:
    judge, again = Judge(ORDER), Judge(ORDER)
    for each in said:
        judge.take(each)
        again.take(read_comparison(ID.encode(), write_comparison(each)))
    assert judge.decision(step) == again.decision(step)


@given(st.none() | st.binary(max_size=200), st.none() | st.binary(max_size=200) | st.just(b'{"rollout": 1}'))
def test_any_other_bytes_are_no_comparison(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(InvalidComparison):
        read_comparison(key, value)


def test_a_comparison_under_another_rollouts_key_is_refused() -> None:
    with pytest.raises(InvalidComparison, match="key is not the rollout"):
        read_comparison(OTHER.encode(), write_comparison(compared()))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, I cannot assist.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I cannot answer this.", True),
        ("Es tut mir leid, das kann ich nicht.", True),
        ("Leider kann ich dazu nichts sagen.", True),
        ("I can see three birds.", False),
        ("Sorry is a song of 2015.", False),
        ("The patient said: I cannot sleep.", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_its_beginning(text: str, refused: bool) -> None:
    assert is_refusal(text) is refused


# -- rollout facts ---------------------------------------------------------------------------------------------------
STEPS: list[Step] = [step for step in Step if step is not Step.SHADOW]


def step(name: Step, rollout: str = ID) -> RolloutStep:
    return RolloutStep(alias="a", rollout=rollout, step=name, why="because", by="w1", at=1)


def table(*records: tuple[bytes, bytes | None]) -> RolloutTable:
    made = RolloutTable()
    for key, value in records:
        made.apply(key, value)
    return made


@given(st.lists(st.sampled_from(STEPS), max_size=8), st.randoms())
def test_the_present_step_does_not_depend_on_the_order_of_records(names: list[Step], shuffled: Any) -> None:
    records = [order_record(ORDER), *(step_record(step(name)) for name in names)]
    other = list(records)
    shuffled.shuffle(other)
    one, two = table(*records).by_alias["a"], table(*other).by_alias["a"]
    assert one == two
    assert one.step == (STEPS[max(map(STEPS.index, names))] if names else Step.SHADOW)


def test_an_aborted_rollout_stays_aborted_and_a_step_of_an_earlier_rollout_does_not_count() -> None:
    late = step_record(step(Step.CANARY_10))
    assert table(order_record(ORDER), step_record(step(Step.ABORTED)), late).by_alias["a"].step is Step.ABORTED
    assert table(order_record(ORDER), step_record(step(Step.PROMOTED, OTHER))).by_alias["a"].step is Step.SHADOW


def test_a_deleted_step_and_a_deleted_order_are_gone() -> None:
    key = step_key("a", ID, Step.CANARY_1)
    known = table(order_record(ORDER), step_record(step(Step.CANARY_1)))
    assert known.records_of("a") == [key]
    known.apply(key, None)
    assert known.by_alias["a"].step is Step.SHADOW
    known.apply(order_record(ORDER)[0], None)
    assert known.by_alias == {}


def test_the_way_of_a_rollout_has_its_shares() -> None:
    way, at = [], Step.SHADOW
    while not at.is_over:
        way.append((at.value, at.share))
        at = at.next
    shares = [("shadow", 0), ("canary-1", 0.01), ("canary-10", 0.1), ("canary-50", 0.5), ("canary-100", 1)]
    assert (way, at) == (shares, Step.PROMOTED)
    assert (Step.PROMOTED.share, Step.ABORTED.share) == (1, 0)


def test_a_larger_share_keeps_the_jobs_of_the_smaller_one() -> None:
    taken: set[int] = set()
    for name in (Step.CANARY_1, Step.CANARY_10, Step.CANARY_50, Step.CANARY_100):
        rollout = table(order_record(ORDER), step_record(step(name))).by_alias["a"]
        jobs = {number for number in range(10_000) if rollout.takes("t", f"job-{number}")}
        assert taken <= jobs
        assert len(jobs) == pytest.approx(10_000 * name.share, rel=0.2)
        taken = jobs


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_a_share_is_a_number_from_zero_to_below_one(parts: list[str]) -> None:
    assert 0 <= share_of(*parts) < 1


KEYS = st.sampled_from([order_record(ORDER)[0], step_key("a", ID, Step.ABORTED), b'["a", "x"]', b"[]", b"", None])
NOISE = st.binary(max_size=100) | st.sampled_from(
    [order_record(ORDER)[1], step_record(step(Step.ABORTED))[1], b"{}", b'{"step": "shadow"}', None]
)


@given(st.lists(st.tuples(KEYS | st.binary(max_size=50), NOISE), max_size=10))
def test_any_record_is_applied_or_refused_and_a_refused_one_changes_nothing(
    records: list[tuple[bytes | None, bytes | None]],
) -> None:
    known = RolloutTable()
    for key, value in records:
        before = dict(known.by_alias)
        try:
            known.apply(key, value)
        except InvalidRollout:
            assert known.by_alias == before


@pytest.mark.parametrize(
    "record",
    [
        (order_record(ORDER)[0], order_record(ORDER.model_copy(update={"alias": "b"}))[1]),
        (step_key("b", ID, Step.ABORTED), step_record(step(Step.ABORTED))[1]),
        (step_key("a", OTHER, Step.ABORTED), step_record(step(Step.ABORTED))[1]),
        (
            step_key("a", ID, Step.SHADOW),
            json.dumps({**step(Step.ABORTED).model_dump(), "step": "shadow"}).encode(),
        ),
    ],
)
def test_a_key_that_contradicts_its_value_is_refused(record: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidRollout, match="key is not the"):
        table(record)


# -- rollout difference ----------------------------------------------------------------------------------------------
JSON = any_json(
    scalars=st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=20), leaves=15
)
LONG = "The capital of France is Paris and it lies on the river Seine in the north of the country"
PLAIN = WITHOUT_PROFILE


def differs(
    one: str | None, other: str | None, *, is_json: bool = False, codes: tuple[Any, Any] = (None, None)
) -> float:
    return difference(Said(one, codes[0]), Said(other, codes[1]), is_json=is_json, profile=PLAIN)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Paris", "paris.", 0),
        ("Paris", "Rome", 1),
        ("It is 5", "It is -5", 1),
        ("It is 5.", "It is 5", 0),
        ("It is 1.5", "It is 1.50", 1),
        ("x < 3", "x > 3", 1),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER P}aris  is", "paris is", 0),
        (LONG, LONG.replace("north", "heart"), 1),
        (f"{LONG}. {LONG}", f"{LONG}. {LONG.replace('north', 'heart')}", 0),
        (LONG, " ".join(reversed(LONG.split())), 1),
        ("東京は日本の首都です", "東京は日本の首都です。", 0),
        ("東京は日本の首都です", "大阪は日本の首都です", 1),
        ("", "", 0),
        ("?", "!", 1),
        ("", "something", 1),
    ],
)
def test_texts_differ_by_their_words(one: str, other: str, expected: int) -> None:
    assert differs(one, other) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 0),
        ('{"score": 0.800}', '{"score": 0.805}', 0),
        ('{"score": 0.80}', '{"score": 0.85}', 1),
        ('{"a": 1}', '{"a": 1, "b": 2}', 1),
        ('{"a": [1, 2]}', '{"a": [1, 2, 3]}', 1),
        ('{"a": true}', '{"a": 1}', 1),
        ('{"a": "Low"}', '{"a": "low"}', 0),
        ('{"a": "low"}', '{"a": "high"}', 1),
        ('{"a": null}', '{"a": 0}', 1),
        ("{broken", "{broken too", 1),
        ("9" * 5000, "9" * 5000 + "9", 0),
    ],
)
def test_json_differs_by_its_fields(one: str, other: str, expected: int) -> None:
    assert differs(one, other, is_json=True) == expected


@given(JSON)
def test_json_equals_itself_in_another_form(value: Any) -> None:
    assert differs(json.dumps(value), json.dumps(value, indent=3, ensure_ascii=False), is_json=True) == 0


@given(st.text(max_size=300), st.text(max_size=300), st.booleans())
def test_any_two_texts_have_a_difference_that_is_the_same_both_ways(one: str, other: str, is_json: bool) -> None:
    assert differs(one, other, is_json=is_json) == differs(other, one, is_json=is_json)
    assert differs(one, one, is_json=is_json) == 0


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900])
def test_deeply_nested_answers_are_compared_as_text_or_by_their_fields(text: str) -> None:
    assert differs(text, text + " ", is_json=True) in (0, 1)


def test_failures_with_one_code_are_equal_and_a_failure_differs_from_an_answer() -> None:
    assert differs(None, None, codes=("not_json", "not_json")) == 0
    assert differs(None, None, codes=("not_json", "unsupported")) == 1
    assert differs("text", None, codes=(None, "not_json")) == 1


@given(st.lists(st.sampled_from("ab"), max_size=30), st.lists(st.sampled_from("ab"), max_size=30))
def test_a_similarity_is_symmetric_and_one_for_equal_words(one: list[str], other: list[str]) -> None:
    assert 0 <= similarity(one, other) == similarity(other, one) <= 1
    assert similarity(one, one) == 1


def test_words_keep_numbers_whole() -> None:
    assert words("It costs -3.50 €, i.e. 7%") == ["it", "costs", "-3.50", "i", "e", "7", "%"]


def test_a_short_text_must_have_equal_words_even_with_a_low_threshold() -> None:
    low = PLAIN.model_copy(update={"equal_similarity": 0.5})
    assert difference(Said("It is safe"), Said("It is not safe"), is_json=False, profile=low) == 1
    assert difference(Said(LONG), Said(LONG.replace("north", "heart")), is_json=False, profile=low) == 0


# -- rollout workers -------------------------------------------------------------------------------------------------
ASSISTANT = RolloutOrder(id=ID, alias="assistant", candidate="next", sample=1, per_second=10_000, canary_jobs=2, at=0)
MODELS: dict[str, str | None] = {"assistant": None, "next": None}
ELSEWHERE: dict[str, str | None] = {"assistant": None, "next": "big"}
DOCUMENT = {"documents": [{"id": "doc-1", "text": "The capital of France is Paris. " * 3}]}


def step_of(name: Step) -> tuple[bytes, bytes]:
    return step_record(RolloutStep(alias="assistant", rollout=ID, step=name, why="because", by="w", at=1))


def begin(worker: Worker, *steps: Step, order: RolloutOrder = ASSISTANT) -> None:
    for each in (order_record(order), *map(step_of, steps)):
        worker.handler.rollouts.apply(*each)


@asynccontextmanager
async def rolling(
    *steps: Step, models: dict[str, str | None] = MODELS, order: RolloutOrder = ASSISTANT
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
        worker.handler.rollouts.apply(
            *order_record(ASSISTANT.model_copy(update={"alias": "default", "primary": "next"}))
        )
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
    async with rolling(order=ASSISTANT.model_copy(update={"per_second": 0.001})) as worker:
        outputs = [topics_of(await worker.outputs(job(job_id=f"j{number}"))) for number in range(5)]
    assert [TOPICS.shadow in each for each in outputs].count(True) == 1


async def test_the_canary_reports_both_sides_and_a_request_that_the_candidate_refuses() -> None:
    async with rolling(Step.CANARY_100) as worker:
        reports = [await worker.outputs(job()), await worker.outputs(job(adapter="none-such"))]
        begin(worker, Step.CANARY_1)
        worker.handler.rollouts.apply(step_of(Step.CANARY_100)[0], None)
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
        self.rollouts.apply(*order_record(ASSISTANT))

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
    over.rollouts.apply(*step_of(Step.CANARY_1))
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
    steered.rollouts.apply(*order_record(ASSISTANT))
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
    steered.rollouts.apply(*order_record(ASSISTANT))
    assert [each.step for each in steered.written] == [Step.ABORTED]


def test_a_rollout_that_is_over_gets_no_further_step() -> None:
    steered = Steered()
    for each in (order_record(ASSISTANT), step_of(Step.ABORTED)):
        steered.rollouts.apply(*each)
    steered.observe(200)
    assert steered.written == []


@given(st.none() | st.just(ID.encode()) | st.binary(max_size=30), st.none() | st.binary(max_size=60))
def test_any_bytes_among_the_comparisons_are_skipped(key: bytes | None, value: bytes | None) -> None:
    steered = Steered()
    steered.rollouts.apply(*order_record(ASSISTANT))
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
    rollouts.apply(*order_record(ASSISTANT.model_copy(update={"alias": alias})))
    for each in steps:
        rollouts.apply(*step_of(each))
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
ANNOUNCED_NOISE = st.binary(max_size=60) | st.dictionaries(FIELDS, ANYTHING).map(
    lambda changed: json.dumps(changed).encode()
)


def said(replica: str, lane: str | None) -> tuple[bytes, bytes]:
    """A record with the announcement of a worker that reads this lane."""
    return worker_key(replica), write_announcement(announcement(replica, lane, ["next"], 0))


@pytest.mark.parametrize("step", CANARY)
async def test_the_primary_answers_each_job_of_the_canary_while_no_worker_reads_the_candidates_lane(
    step: Step,
) -> None:
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
@given(EVENTS, st.lists(st.tuples(st.none() | st.binary(max_size=3), ANNOUNCED_NOISE), max_size=5))
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
