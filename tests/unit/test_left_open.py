"""The log lines about partitions that a dead process left open."""

from __future__ import annotations

import pytest

from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import Intake, bare_stage
from workers.stage.left_open import SAY_SECONDS
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.stage import Stage

PARTITIONS = 156


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[object, object, object]]:
    """The topic, the partitions and the suspects in each line about partitions that were left open."""
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    ours = [line for line in said if line["action"] == "partition-left-open"]
    return [(line["topic"], line["partitions"], line["suspects"]) for line in ours]


def opened(stage: Stage, topic: str, *numbers: int) -> None:
    """Let the first records of these partitions come, in one round of the stage."""
    stage.take([Record(topic, number, 7, b"") for number in numbers], [])
    stage.dispatch()


def test_one_line_a_minute_for_each_topic_counts_the_partitions_that_were_left_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake, clock = Intake(), HandClock()
    intake.progress = Progress(7, open=True)
    stage, _ = bare_stage(intake, clock)
    stage.assigned([(topic, number) for topic in ("a", "b") for number in range(PARTITIONS)])

    opened(stage, "a", 0)
    opened(stage, "b", 0, 1)
    for number in range(1, PARTITIONS):
        opened(stage, "a", number)
    assert lines(caplog) == [("a", 1, 0), ("b", 2, 0)]

    clock.sleep(SAY_SECONDS)
    stage.dispatch()
    stage.dispatch()
    assert lines(caplog)[2:] == [("a", PARTITIONS - 1, 0)]

    clock.sleep(SAY_SECONDS)
    stage.dispatch()
    assert len(lines(caplog)) == 3
