"""The figures that `postback bench-fleet` computes from callbacks of any content, on a clock that the test sets."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from operators.fleet_bench import BenchPlan, FleetBench
from telemetry.hand_clock import HandClock, SetClock

URL = "https://bench.example/"
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["data", "id", "type"]) | st.text(), inner),
)


def event(job_id: object, kind: object = "inference.succeeded") -> dict[str, object]:
    return {"type": kind, "data": {"id": job_id}}


def test_a_job_is_timed_from_its_submission_to_its_first_callback() -> None:
    clock = SetClock(1_000.0)
    bench, plan = FleetBench(clock), BenchPlan("echo", 4, URL, 60.0)
    ids = [job.job_id for job in bench.work(plan)]
    for seconds, job_id, kind in ((1.0, ids[0], "succeeded"), (1.0, ids[1], "failed"), (2.0, ids[0], "failed")):
        clock.now += seconds
        bench.arrived(event(job_id, f"inference.{kind}"))

    report = bench.report(plan, accepted=3)
    assert report.document() == {
        "model": "echo",
        "jobs": 4,
        "accepted": 3,
        "called_back": 2,
        "outcomes": {"succeeded": 1, "failed": 1},
        "seconds": 2.0,
        "jobs_per_second": 1.0,
        "submit_to_callback_ms": {"p50": 1000.0, "p90": 2000.0, "p99": 2000.0, "max": 2000.0},
    }
    assert report.succeeded == 1


def test_without_a_callback_there_are_no_times() -> None:
    bench, plan = FleetBench(SetClock(0.0)), BenchPlan("echo", 1, URL, 60.0)
    list(bench.work(plan))
    report = bench.report(plan, accepted=1)

    assert (report.called_back, report.jobs_per_second, report.percentile(99)) == (0, 0.0, None)
    json.dumps(report.document())


def test_a_rate_spreads_the_jobs_and_each_job_expires_by_itself() -> None:
    clock = HandClock()
    bench, plan = FleetBench(clock), BenchPlan("echo", 5, URL, 60.0, rate=4.0)
    at = [(clock.monotonic(), job.ttl_seconds, job.model_id) for job in bench.work(plan)]

    assert [later[0] - earlier[0] for earlier, later in pairwise(at)] == [0.25] * 4
    assert {one[1:] for one in at} == {(60.0, "echo")}


@given(JSON | st.builds(event, JSON, JSON))
def test_an_event_of_any_form_changes_nothing(said: object) -> None:
    bench = FleetBench(SetClock(0.0))
    list(bench.work(BenchPlan("echo", 2, URL, 60.0)))
    bench.arrived(said)

    assert bench.called_back == 0
