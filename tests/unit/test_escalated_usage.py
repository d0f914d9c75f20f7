"""The usage of a job that two models tried: the tokens of both tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.outcome import Outcome
from schemas.result import Result, Usage
from workers.inference.model_rules import Escalate

COUNTS = st.integers(0, 1000)
OPTIONAL = st.none() | COUNTS
USAGES = st.builds(
    Usage,
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    total_tokens=COUNTS,
    cached_tokens=OPTIONAL,
    reasoning_tokens=OPTIONAL,
)


def result(outcome: Outcome, usage: Usage) -> Result:
    return Result(job_id="j", outcome=outcome, created_at=0, usage=usage)


@given(USAGES, USAGES, st.sampled_from(Outcome), st.sampled_from(Outcome))
def test_each_count_is_the_sum_of_both_tries_and_absent_only_if_neither_states_it(
    first: Usage, second: Usage, before: Outcome, after: Outcome
) -> None:
    escalate = Escalate("small", "large", "not_json")
    usage = escalate.chosen(result(before, first), result(after, second)).usage
    assert usage is not None
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"):
        told = [count for count in (getattr(first, name), getattr(second, name)) if count is not None]
        assert getattr(usage, name) == (sum(told) if told else None)
