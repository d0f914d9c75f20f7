"""The steering of a rollout in a worker: enough comparisons make the worker write the next step."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.rollout.comparison import Comparison, ObservedAnswer, write_comparison
from schemas.rollout.facts import RolloutStep, Step, order_record, step_record
from telemetry.metrics import Metrics
from tests.handlers import CLOCK
from tests.unit.test_rollout_workers import ID, ORDER, step
from workers.inference.registry import Registry
from workers.inference.rollout.rollouts import Rollouts
from workers.inference.rollout.steering import Steering


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
