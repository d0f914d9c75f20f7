"""The demo's verdict on callbacks and results: right, wrong, missing and unverified ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from console.demo.verdict import DemoJob, DemoTally, percentile
from devkit.receiver import Received
from devkit.site import Question

PAGE = "http://127.0.0.1:1/bridge"


@pytest.fixture
def tally() -> DemoTally:
    return DemoTally(
        {"demo-1": DemoJob("demo-1", Question("When did it open?", "/bridge", "1987"), PAGE, sent_at=10.0)}
    )


def callback(*, verified: bool = True, webhook_id: str = "msg_1", **changed: Any) -> Received:
    data = {"id": "demo-1", "outcome": "succeeded", "text": "In 1987.", "sources": [PAGE]} | changed
    event = {"type": f"inference.{data['outcome']}", "data": data}
    problem = None if verified else "no matching signature"
    return Received(webhook_id, verified, problem, {}, event, b"", 10.5, 200 if verified else 401)


def ended(tally: DemoTally, results: int = 1) -> list[str]:
    tally.settled(Counter({"demo-1": results}))
    return list(tally.summary("vllm"))


def test_a_right_answer_from_its_page_passes(tally: DemoTally) -> None:
    verdict = tally.add(callback(text="it was in 1987, they say"))
    assert verdict is not None
    assert (verdict.problems, verdict.seconds) == ((), 0.5)
    assert ended(tally) == [
        "1 of 1 answered, 1 right with the right source, 1 signatures verified",
        "Kafka has exactly one settled result for each job",
        "from submit to callback: p50 0.50 s, p99 0.50 s, with all jobs submitted at once",
    ]
    assert tally.well


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"text": "In 19870."}, 'the answer lacks "1987"'),
        ({"text": None}, 'the answer lacks "1987"'),
        ({"sources": ["http://127.0.0.1:1/mine"]}, f"{PAGE} is not among the sources"),
        ({"outcome": "failed", "error": {"message": "too large"}}, "the outcome is failed: too large"),
    ],
)
def test_a_wrong_callback_is_named_and_fails(tally: DemoTally, changed: dict[str, Any], problem: str) -> None:
    verdict = tally.add(callback(**changed))
    assert verdict is not None
    assert verdict.problems == (problem,)
    assert list(verdict.lines("1/1"))[-1] == f"     WRONG: {problem}"
    ended(tally)
    assert not tally.well


def test_a_missing_callback_is_named(tally: DemoTally) -> None:
    assert "WRONG: demo-1 has had no callback" in ended(tally)
    assert not tally.well


def test_an_unverified_callback_answers_no_question(tally: DemoTally) -> None:
    assert tally.add(callback(verified=False)) is None
    assert "WRONG: a callback was not verified: no matching signature" in ended(tally)
    assert not tally.complete
    tally.add(callback())
    assert not tally.well


@pytest.mark.parametrize(("webhook_id", "well"), [("msg_1", True), ("msg_2", False)])
def test_a_repeat_is_fine_under_the_same_webhook_id_only(tally: DemoTally, webhook_id: str, well: bool) -> None:
    tally.add(callback())
    assert tally.add(callback(webhook_id=webhook_id)) is None
    ended(tally)
    assert (tally.repeats, tally.well) == (1, well)


@pytest.mark.parametrize("results", [0, 2])
def test_a_job_without_exactly_one_settled_result_is_named(tally: DemoTally, results: int) -> None:
    tally.add(callback())
    assert f"WRONG: demo-1 has {results} results in Kafka instead of one" in ended(tally, results)
    assert not tally.well


def test_percentiles_are_values_that_were_measured() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert (percentile(hundred, 0.5), percentile(hundred, 0.99)) == (50.0, 99.0)
    assert percentile([7.0], 0.99) == 7.0
