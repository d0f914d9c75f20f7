"""The parts of a stage over a real group."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.delivery.settings import DeliverySettings
from workers.delivery.tier_pace import TierPace
from workers.roles.delivery import stages_of
from workers.stage import build
from workers.stage.backpressure import Unpaced
from workers.stage.intake import GroupIntake
from workers.stage.settings import StageSettings
from workers.stage.settle import Settler
from workers.system.memory_limit import MIB


@pytest.mark.parametrize("paced", [False, True])
def test_less_is_fetched_ahead_of_tiers_whose_records_may_be_given_back(
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


def test_results_and_tiers_have_stages_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one stage read results and tiers, new results would wait behind tiers' records, which come due in crowds."""
    kafka, clock, metrics = KafkaSettings(topic_prefix="a."), SystemClock(), Metrics()
    settings = DeliverySettings(window_bytes=64 * MIB)
    read: list[list[str]] = []
    identities: list[str] = []

    def intake(config: Any, group: str, topics: list[str], **options: Any) -> Any:
        assert group == "a.delivery"
        read.append(topics)
        return GroupIntake(config, group, topics, **options)

    def settler(config: Any, identity: str, *parts: Any) -> Any:
        identities.append(identity)
        return Settler(config, identity, *parts)

    monkeypatch.setattr(build, "GroupIntake", intake)
    monkeypatch.setattr(build, "Settler", settler)
    pace: Any = TierPace(kafka.topics, clock)
    results, tiers = stages_of(pace, settings, kafka, "d0", clock, metrics, ["a.callback_retries.7s"])
    assert read == [
        [kafka.topics.results, kafka.topics.events],
        [*kafka.topics.tiers.values(), "a.callback_retries.7s"],
    ]
    assert identities == ["a.delivery.d0", "a.delivery.d0.tiers"]
    limits = [stage.dispatching.window.limits for stage in (results, tiers)]
    assert [(each.records, each.bytes) for each in limits] == [(settings.window_records, 32 * MIB)] * 2
