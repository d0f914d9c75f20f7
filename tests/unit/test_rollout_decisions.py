"""Decisions about a rollout: its facts, the judge, and the differences between answers."""

from __future__ import annotations

import json
from collections import Counter
from math import nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from tests.any_json import any_json
from tests.drawn import drawn
from workers.inference.rollout.difference import Said, difference, similarity, words
from workers.inference.rollout.sampling import WITHOUT_PROFILE

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
