"""Records of `model_rollouts`: the state that follows from them, in any order and from any bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

ID, OTHER = "ro_0123456789abcdef", "ro_ffffffffffffffff"
ORDER = RolloutOrder(id=ID, alias="a", candidate="c", at=0)
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


def test_an_aborted_rollout_stays_aborted_whatever_a_worker_writes_later() -> None:
    late = step_record(step(Step.CANARY_10))
    assert table(order_record(ORDER), step_record(step(Step.ABORTED)), late).by_alias["a"].step is Step.ABORTED


def test_a_step_of_an_earlier_rollout_does_not_count() -> None:
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
        (step_key("a", ID, Step.SHADOW), json.dumps({**step(Step.ABORTED).model_dump(), "step": "shadow"}).encode()),
    ],
)
def test_a_key_that_contradicts_its_value_is_refused(record: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidRollout, match="key is not the"):
        table(record)
