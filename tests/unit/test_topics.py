from __future__ import annotations

import pytest
from pydantic import ValidationError

from schemas.job import LONGEST_TTL_SECONDS
from schemas.settings import KafkaSettings
from schemas.topics import (
    LANES_KEPT_MS,
    LETTERS_KEPT_MS,
    TIER_DELAYS_SECONDS,
    TOMBSTONES_KEPT_MS,
    Topics,
    tier_delay,
    tier_name,
    tiers_of,
)
from workers.inference.cancellations import KEPT_MS


@pytest.mark.parametrize(
    ("delay", "name"),
    [(5, "5s"), (90, "90s"), (300, "5m"), (1800, "30m"), (7200, "2h"), (86400, "24h"), (0.2, "200ms")],
)
def test_a_tier_is_named_by_its_delay(delay: float, name: str) -> None:
    assert tier_name(delay) == name


@pytest.mark.parametrize("delay", [*TIER_DELAYS_SECONDS, 90, 0.2, 0.001, 1.5, 3 * 86_400])
def test_a_tiers_name_says_its_delay(delay: float) -> None:
    assert tier_delay(tier_name(delay)) == pytest.approx(delay)


def test_a_topic_of_an_earlier_schedule_is_known_by_its_name() -> None:
    topics = Topics("a.", (5, 300))
    existing = ["a.callback_retries.5s", "a.callback_retries.45s", "a.callback_retries.1500ms", "a.callback_retries.x"]

    assert topics.former_tiers([*existing, "callback_retries.2h", "a.model_results"]) == {
        "a.callback_retries.45s": 45,
        "a.callback_retries.1500ms": 1.5,
    }


def test_the_lanes_among_other_topics_are_known_by_their_names() -> None:
    topics = Topics("a.")
    lanes = [lane for engine in (None, "big") for lane in topics.requests_of(engine)]
    others = [
        topics.shadow,
        topics.results,
        topics.batch_requests,
        "model_requests",
        "a.model_requests_old",
        "a.model_requests.",
    ]

    assert topics.lanes([*others, *reversed(lanes)]) == sorted(lanes)


@pytest.mark.parametrize(
    ("delays", "problem"),
    [
        ((), "at least 1 item"),
        ((5, 0), "greater than or equal to 0.001"),
        ((5, 86_400 * 6), "less than or equal to 432000"),
        ((0.2, 0.2003), "would share a topic"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(delays: tuple[float, ...], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        KafkaSettings(tier_delays_seconds=delays)


def test_no_two_tiers_share_a_topic() -> None:
    assert len({Topics().tier(delay) for delay in TIER_DELAYS_SECONDS}) == len(TIER_DELAYS_SECONDS)


def test_tiers_are_listed_from_the_shortest_delay() -> None:
    assert list(Topics("", (0.5, 5, 0.3)).tiers.items()) == [
        (0.3, "callback_retries.300ms"), (0.5, "callback_retries.500ms"), (5, "callback_retries.5s"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("waits", "tiers"),
    [
        ((5, 300), (5, 30, 120, 300)),
        (TIER_DELAYS_SECONDS, (5, 30, 120, *TIER_DELAYS_SECONDS[1:])),
        ((5, 30, 300), (5, 30, 120, 300)),
        ((30, 300), (30, 120, 300)),
        ((60, 300), (60, 120, 300)),
        ((120, 300), (120, 300)),
        ((5, 120), (5, 30, 120)),
        ((5, 30), (5, 30)),
        ((5,), (5,)),
    ],
)
def test_tiers_of_thirty_seconds_and_two_minutes_lie_between_the_waits_of_a_schedule_that_goes_past_them(
    waits: tuple[float, ...], tiers: tuple[float, ...]
) -> None:
    assert tiers_of(waits) == tiers
    assert tuple(Topics("", waits).tiers) == tiers


def test_the_lanes_are_named_by_engine_and_urgency() -> None:
    topics = Topics()

    assert [topics.requests(), topics.requests(bulk=True)] == ["model_requests", "model_requests.batch"]
    assert topics.requests("vllm") == "model_requests.vllm"
    assert topics.requests("vllm", bulk=True) == "model_requests.vllm.batch"
    assert topics.requests("vllm", spare=True) == "model_requests.vllm.spare"
    assert [topics.lane(name) for name in ("default", "bulk", "spare")] == topics.requests_of(None)


def test_the_prefix_stands_before_every_topic_so_that_fleets_can_share_brokers() -> None:
    plain = [spec.name for spec in Topics().specs(3, ("vllm",))]
    prefixed = [spec.name for spec in Topics("test.").specs(3, ("vllm",))]

    assert prefixed == [f"test.{name}" for name in plain]
    assert len(set(plain)) == len(plain)


def test_results_have_as_many_partitions_as_requests() -> None:
    topics = Topics()
    partitions = {spec.name: spec.partitions for spec in topics.specs(7)}

    assert partitions[topics.results] == partitions[topics.requests()] == 7


def test_an_unread_job_is_still_in_its_lane_a_day_after_its_time_is_up() -> None:
    topics = Topics()
    kept_ms = {spec.name: int(spec.config.get("retention.ms", 0)) for spec in topics.specs(3, ("vllm",))}
    lanes = [lane for engine in (None, "vllm") for lane in topics.requests_of(engine)]

    assert {kept_ms[lane] for lane in lanes} == {LANES_KEPT_MS}
    assert LANES_KEPT_MS - LONGEST_TTL_SECONDS * 1000 >= 24 * 3600 * 1000


def test_marks_of_put_back_letters_are_kept_longer_than_any_letter() -> None:
    """Kafka deletes a letter only with its whole segment, which fills for `segment.ms`, by default 7 days."""
    topics = Topics()
    kept = {spec.name: int(spec.config.get("retention.ms", 0)) for spec in topics.specs(3)}

    assert kept[topics.dead_letters] == LETTERS_KEPT_MS
    assert kept[topics.redriven] > LETTERS_KEPT_MS + 7 * 24 * 3600 * 1000


def test_topics_of_facts_are_compacted_and_dead_letters_are_kept_longest() -> None:
    topics = Topics()
    config = {spec.name: spec.config for spec in topics.specs(3)}
    marks = config.pop(topics.redriven)
    longest = max(int(one["retention.ms"]) for one in config.values() if "retention.ms" in one)

    assert config[topics.endpoints]["cleanup.policy"] == "compact"
    assert config[topics.control]["cleanup.policy"] == "compact,delete"
    assert config[topics.control]["retention.ms"] == str(LETTERS_KEPT_MS)
    assert KEPT_MS < LETTERS_KEPT_MS
    assert config[topics.dead_letters]["retention.ms"] == str(longest)
    assert marks["cleanup.policy"] == "delete"
    for followed in (topics.endpoints, topics.control):
        assert config[followed]["delete.retention.ms"] == str(TOMBSTONES_KEPT_MS)


def test_records_of_the_fleet_are_stamped_by_the_broker_whatever_a_processs_clock_says() -> None:
    topics = Topics()
    stamped = {spec.name for spec in topics.specs(3) if spec.config.get("message.timestamp.type") == "LogAppendTime"}

    assert stamped == {
        topics.results, topics.events, topics.attempts, topics.dead_letters, topics.redriven, topics.control,
        topics.workers, topics.comparisons, *topics.tiers.values(),
    }  # fmt: skip


def test_every_engine_has_both_lanes() -> None:
    names = {spec.name for spec in Topics().specs(3, ("vllm", "echo"))}

    assert {"model_requests.vllm", "model_requests.vllm.batch", "model_requests.echo.batch"} <= names
