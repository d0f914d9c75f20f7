"""A worker's reports of an unavailable engine: when such a report begins, and when it ends."""

from __future__ import annotations

from typing import Any, cast

import pytest

from telemetry.hand_clock import HandClock
from workers.engines.base import EngineDied, EngineUnavailable
from workers.inference.engine_watch import EngineWatch
from workers.roles.supervision import alive, readiness_of

AWAY = EngineUnavailable("the server answered 503")


def reasons(watch: EngineWatch) -> tuple[str, ...]:
    return readiness_of([], [watch]).reasons


def test_an_engine_that_is_away_for_more_than_ten_seconds_is_a_reason_until_it_answers() -> None:
    clock = HandClock()
    watch = EngineWatch(clock)
    with watch.asking():
        watch.failed(AWAY)
        clock.now += 10.0
        assert reasons(watch) == ()
        clock.now += 2.0
        watch.failed(EngineUnavailable("the server was not reached: ClientConnectorError"))
        assert reasons(watch) == (
            "the engine has not answered for 12 s: the server was not reached: ClientConnectorError",
        )
        assert alive([], [watch])
        watch.answered(watch.begin())
        assert reasons(watch) == ()
        watch.failed(AWAY)
        assert reasons(watch) == ()


def test_an_engine_that_fails_now_and_then_and_answers_in_between_is_no_reason() -> None:
    clock = HandClock()
    watch = EngineWatch(clock)
    with watch.asking():
        for _ in range(10):
            watch.failed(AWAY)
            clock.now += 6.0
            watch.answered(watch.begin())
            clock.now += 6.0
            assert reasons(watch) == ()


def test_an_engine_whose_process_died_is_a_reason_while_jobs_wait_for_it_to_be_loaded() -> None:
    clock = HandClock()
    watch = EngineWatch(clock)
    with watch.asking():
        watch.failed(EngineDied("the engine's process ended with this request in flight"))
    clock.now += 60.0
    assert reasons(watch) == ()
    with watch.asking():
        assert reasons(watch) == (
            "the engine has not answered for 60 s: the engine's process ended with this request in flight",
        )


def test_an_absence_that_the_engine_knows_is_a_reason_at_once_and_without_a_job() -> None:
    absence = ["the model is loaded again"]
    watch = EngineWatch(HandClock(), lambda: absence[0] if absence else None)
    assert reasons(watch) == ("the model is loaded again",)
    absence.clear()
    assert reasons(watch) == ()


def test_many_retries_log_one_line_in_ten_seconds_and_their_end_logs_one_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    clock = HandClock()
    watch = EngineWatch(clock)
    with watch.asking(), watch.asking():
        for _ in range(250):
            watch.failed(AWAY)
            clock.now += 0.1
        watch.answered(watch.begin())
        watch.answered(watch.begin())
    lines = [cast("dict[str, Any]", record.msg) for record in caplog.records]
    assert [(line["level"], line["action"]) for line in lines] == [
        ("warning", "engine-unavailable"),
        ("warning", "engine-unavailable"),
        ("warning", "engine-unavailable"),
        ("info", "engine-back"),
    ]
    assert (lines[0]["why"], lines[0]["jobs"], lines[-1]["away_seconds"]) == ("the server answered 503", 2, 25)
