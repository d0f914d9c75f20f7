"""The parts of a stage over a real group."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.delivery.tier_pace import TierPace
from workers.stage import build
from workers.stage.backpressure import Unpaced
from workers.stage.intake import GroupIntake
from workers.stage.settings import StageSettings


@pytest.mark.parametrize("paced", [False, True])
def test_less_is_fetched_ahead_where_a_tier_may_stand_before_what_has_just_come(
    paced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    kafka, clock = KafkaSettings(), SystemClock()

    def intake(*args: Any, **options: Any) -> Any:
        found.update(options)
        return GroupIntake(*args, **options)

    monkeypatch.setattr(build, "GroupIntake", intake)
    pace = TierPace(kafka.topics, clock) if paced else Unpaced()
    read = [kafka.topics.results, *kafka.topics.tiers.values()]
    handler: Any = None
    build.group_stage(StageSettings("some"), kafka, read, "a", handler, clock, Metrics(), pace)
    assert found["prefetch_records"] == (build.AHEAD_OF_PACED if paced else 2048)
