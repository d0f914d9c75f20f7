"""Topics of a fleet, their creation, and messages about invalid settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import errors as kafka_errors
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from cli.operations import topics as producers_topics
from cli.operations.topics import create_topics
from producers.errors import RequestRefused
from schemas.job import LONGEST_TTL_SECONDS
from schemas.settings import FleetSettings, KafkaSettings, SettingsRefused, read_settings
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
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings
from workers.engines.registry import engine_settings
from workers.enrichment.settings import CacheSettings, EnrichmentSettings, SearchSettings
from workers.inference.lifetime import KEPT_MS
from workers.inference.settings import WorkerSettings


def test_a_tier_is_named_by_its_delay_and_its_name_says_the_delay() -> None:
    named = {5: "5s", 90: "90s", 300: "5m", 1800: "30m", 7200: "2h", 86400: "24h", 0.2: "200ms"}
    assert {delay: tier_name(delay) for delay in named} == named
    for delay in (*TIER_DELAYS_SECONDS, 90, 0.2, 0.001, 1.5, 3 * 86_400):
        assert tier_delay(tier_name(delay)) == pytest.approx(delay)
    assert len({Topics().tier(delay) for delay in TIER_DELAYS_SECONDS}) == len(TIER_DELAYS_SECONDS)


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
    others = [topics.shadow, topics.results, topics.batch_requests]
    strangers = ["model_requests", "a.model_requests_old", "a.model_requests."]

    assert topics.lanes([*others, *strangers, *reversed(lanes)]) == sorted(lanes)


def test_a_schedule_that_cannot_be_kept_is_refused() -> None:
    for delays, problem in (
        ((), "at least 1 item"),
        ((5, 0), "greater than or equal to 0.001"),
        ((5, 86_400 * 6), "less than or equal to 432000"),
        ((0.2, 0.2003), "would share a topic"),
    ):
        with pytest.raises(ValidationError, match=problem):
            KafkaSettings(tier_delays_seconds=delays)


def test_tiers_are_listed_from_the_shortest_delay() -> None:
    assert list(Topics("", (0.5, 5, 0.3)).tiers.items()) == [
        (0.3, "callback_retries.300ms"), (0.5, "callback_retries.500ms"), (5, "callback_retries.5s"),
    ]  # fmt: skip


def test_tiers_of_thirty_seconds_and_two_minutes_lie_between_the_waits_of_a_schedule_that_goes_past_them() -> None:
    tiers: dict[tuple[float, ...], tuple[float, ...]] = {
        (5, 300): (5, 30, 120, 300),
        TIER_DELAYS_SECONDS: (5, 30, 120, *TIER_DELAYS_SECONDS[1:]),
        (5, 30, 300): (5, 30, 120, 300),
        (30, 300): (30, 120, 300),
        (60, 300): (60, 120, 300),
        (120, 300): (120, 300),
        (5, 120): (5, 30, 120),
        (5, 30): (5, 30),
        (5,): (5,),
    }
    assert {waits: tiers_of(waits) for waits in tiers} == tiers
    assert {waits: tuple(Topics("", waits).tiers) for waits in tiers} == tiers


def test_the_lanes_are_named_by_engine_and_urgency() -> None:
    topics = Topics()

    assert [topics.requests(), topics.requests(bulk=True)] == ["model_requests", "model_requests.batch"]
    assert topics.requests("vllm") == "model_requests.vllm"
    assert topics.requests("vllm", bulk=True) == "model_requests.vllm.batch"
    assert topics.requests("vllm", spare=True) == "model_requests.vllm.spare"
    assert [topics.lane(name) for name in ("default", "bulk", "spare")] == topics.requests_of(None)


def test_the_prefix_stands_before_every_topic_so_that_fleets_can_share_brokers() -> None:
    plain = {spec.name: spec.partitions for spec in Topics().specs(7, ("vllm", "echo"))}
    prefixed = [spec.name for spec in Topics("test.").specs(7, ("vllm", "echo"))]

    assert prefixed == [f"test.{name}" for name in plain]
    assert len(plain) == len(prefixed)
    assert {"model_requests.vllm", "model_requests.vllm.batch", "model_requests.echo.batch"} <= plain.keys()
    assert plain[Topics().results] == plain[Topics().requests()] == 7


def test_an_unread_job_is_still_in_its_lane_a_day_after_its_time_is_up() -> None:
    topics = Topics()
    kept_ms = {spec.name: int(spec.config.get("retention.ms", 0)) for spec in topics.specs(3, ("vllm",))}
    lanes = [lane for engine in (None, "vllm") for lane in topics.requests_of(engine)]

    assert {kept_ms[lane] for lane in lanes} == {LANES_KEPT_MS}
    assert LANES_KEPT_MS - LONGEST_TTL_SECONDS * 1000 >= 24 * 3600 * 1000


def test_topics_of_facts_are_compacted_and_dead_letters_are_kept_longest_but_for_their_marks() -> None:
    topics = Topics()
    config = {spec.name: spec.config for spec in topics.specs(3)}
    marks = config.pop(topics.redriven)
    longest = max(int(one["retention.ms"]) for one in config.values() if "retention.ms" in one)

    assert config[topics.endpoints]["cleanup.policy"] == "compact"
    assert config[topics.control]["cleanup.policy"] == "compact,delete"
    assert config[topics.control]["retention.ms"] == str(LETTERS_KEPT_MS)
    assert KEPT_MS < LETTERS_KEPT_MS == longest
    assert config[topics.dead_letters]["retention.ms"] == str(longest)
    # Kafka deletes a letter only with its whole segment, which fills for `segment.ms`, by default 7 days.
    assert int(marks["retention.ms"]) > LETTERS_KEPT_MS + 7 * 24 * 3600 * 1000
    assert marks["cleanup.policy"] == "delete"
    for followed in (topics.endpoints, topics.control):
        assert config[followed]["delete.retention.ms"] == str(TOMBSTONES_KEPT_MS)


def test_records_of_the_fleet_are_stamped_by_the_broker_whatever_a_processs_clock_says() -> None:
    topics = Topics()
    stamped = {spec.name for spec in topics.specs(3) if spec.config.get("message.timestamp.type") == "LogAppendTime"}

    assert stamped == {
        topics.results, topics.events, topics.attempts, topics.dead_letters, topics.redriven, topics.control,
        topics.workers, topics.comparisons, *topics.tiers.values(), *topics.later.values(),
    }  # fmt: skip


# -- topics with many partitions ---------------------------------------------------------------------------------------


MOST = 10_000
"""`ReplicationControlManager.MAX_PARTITIONS_PER_BATCH` of Kafka 4.3."""


class Admin:
    """The part of kafka-python's admin client that `create_topics` uses."""

    def __init__(self) -> None:
        self.partitions: dict[str, int] = {}
        self.waits_ms: list[int] = []
        self.is_slow = False

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [
            {"name": name, "error_code": 0, "partitions": [{"replica_nodes": [1]}] * self.partitions[name]}
            for name in names
            if name in self.partitions
        ]

    def describe_cluster(self) -> dict[str, Any]:
        return {"brokers": [{"node_id": 1}]}

    def create_topics(self, asked: dict[str, dict[str, Any]], raise_errors: bool) -> dict[str, Any]:
        self._take({name: each["num_partitions"] for name, each in asked.items()})
        return {"topics": [{"name": name, "error_code": 0, "error_message": None} for name in asked]}

    def create_partitions(self, asked: dict[str, int]) -> None:
        self._take(asked)

    def _take(self, asked: dict[str, int]) -> None:
        if sum(asked.values()) > MOST:
            raise kafka_errors.PolicyViolationError("Excessively large number of partitions per request.")
        self.partitions |= asked

    def wait_for_topics(self, names: list[str], timeout_ms: int = MOST) -> None:
        self.waits_ms.append(timeout_ms)
        if self.is_slow:
            raise kafka_errors.KafkaTimeoutError


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Admin:
    fake = Admin()

    @contextmanager
    def admin_client(settings: KafkaSettings) -> Iterator[Admin]:
        yield fake

    differences: Callable[..., Any] = lambda *_: ([], [])  # noqa: E731 - another test covers configs
    monkeypatch.setattr(producers_topics, "admin_client", admin_client)
    monkeypatch.setattr(producers_topics, "config_differences", differences)
    return fake


@pytest.mark.parametrize("partitions", [1, 555, 556, 2000, MOST])
def test_each_topic_may_have_as_many_partitions_as_kafka_takes(admin: Admin, partitions: int) -> None:
    settings = KafkaSettings(partitions=partitions)
    wanted = {spec.name: spec.partitions for spec in settings.topics.specs(partitions)}
    assert create_topics(settings).created == list(wanted)
    assert admin.partitions == wanted
    assert min(admin.waits_ms) >= 10 * sum(wanted.values())


def test_a_kafka_that_takes_too_long_to_set_up_new_partitions_is_not_one_that_does_not_answer(admin: Admin) -> None:
    admin.is_slow = True
    with pytest.raises(RequestRefused, match="within 20 s; run this command again"):
        create_topics(KafkaSettings(partitions=20))


def test_partitions_are_also_added_topic_by_topic(admin: Admin) -> None:
    create_topics(KafkaSettings(partitions=10))
    report = create_topics(KafkaSettings(partitions=2000), raise_partitions=True)
    assert {difference.found for difference in report.raised} == {10}
    assert max(admin.partitions.values()) == 2000


def test_a_variable_sets_a_setting_and_no_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, name in (("DELIVERY", "JITTER"), ("DELIVERY", "DISABLE_AFTER_SECONDS"), ("SEARCH", "ARXIV__PER_SECOND")):
        monkeypatch.setenv(f"POSTBACK_{room}__{name}", "0.5")
    delivery, search = read_settings(DeliverySettings), read_settings(SearchSettings)
    assert (delivery.jitter, delivery.disable_after_seconds) == (0.1, 0.5)
    assert search.arxiv.per_second == pytest.approx(1 / 3)


# -- invalid settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "variable", "value"),
    [
        (FleetSettings, "POSTBACK_ENV", "s3cret"),
        (FleetSettings, "POSTBACK_KAFKA__PARTITIONS", "s3cret"),
        (CacheSettings, "POSTBACK_CACHE__DISK_BYTES", "s3cret"),
        (engine_settings(), "POSTBACK_ENGINE__OPENAI__ATTEMPTS", "s3cret"),
        (EgressSettings, "POSTBACK_EGRESS__PORTS", "s3cret"),
        (WorkerSettings, "POSTBACK_WORKER__MODELS", '{"a": "s3cret", "b": 7}'),
        (WorkerSettings, "POSTBACK_WORKER__MODELS", "{s3cret"),
        (DeliverySettings, "POSTBACK_DELIVERY__CLIENT_CERTIFICATES", '{"acme": "/s3cret.pem"}'),
    ],
)
def test_a_refused_value_is_not_shown_and_its_variable_is_named(
    kind: type[BaseSettings], variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsRefused) as refused:
        read_settings(kind)
    assert str(refused.value).startswith(f"{variable}: ")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("kind", "variable", "value", "meaning"),
    [
        (EnrichmentSettings, "POSTBACK_ENRICHMENT__OCR", "eng deu", "reads images and scanned pages of PDFs, such as"),
        (FleetSettings, "POSTBACK_KAFKA__TOPIC_PREFIX", "a fleet", "Prefix of "),
        (engine_settings(), "POSTBACK_ENGINE__OPENAI__BASE_URL", "localhost:8000", "URL"),
    ],
)
def test_a_value_of_another_form_is_answered_with_the_variable_s_meaning_and_no_pattern(
    kind: type[BaseSettings], variable: str, value: str, meaning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsRefused) as refused:
        read_settings(kind)
    said = str(refused.value)
    assert said.startswith(f"{variable}: has another form than this variable takes: ")
    assert (meaning in said, "pattern" in said, value in said) == (True, False, False)


def test_every_refused_variable_is_named_and_those_of_one_field_by_their_common_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POSTBACK_WORKER__WINDOW_RECORDS", "0")
    monkeypatch.setenv("POSTBACK_WORKER__DRAIN_SECONDS", "900")
    with pytest.raises(SettingsRefused) as refused:
        read_settings(WorkerSettings)
    assert str(refused.value).split("; ") == [
        "POSTBACK_WORKER__WINDOW_RECORDS: Input should be greater than or equal to 1",
        "POSTBACK_WORKER__DRAIN_SECONDS: Input should be less than or equal to 600",
    ]
    monkeypatch.setenv("POSTBACK_KAFKA__TIER_DELAYS_SECONDS", "[s3cret")
    with pytest.raises(SettingsRefused, match=r"^POSTBACK_KAFKA__…: is not JSON, as this variable has to be$"):
        read_settings(FleetSettings)


def test_a_secret_of_kafka_s_clients_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """librdkafka gets the secret from the file; kafka-python's properties are translated from the same settings."""
    file = tmp_path / "s3cret-place"
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SASL_PASSWORD_FILE", str(file))
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SASL_USERNAME", "fleet")
    for content, problem in (
        (None, "cannot be read (No such file"),
        (b"", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"x" * 70_000, "larger"),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(SettingsRefused) as refused:
            read_settings(FleetSettings)
        assert "SASL_PASSWORD_FILE" in str(refused.value)
        assert problem in str(refused.value)
        assert "s3cret" not in str(refused.value)
    for ending in ("", "\n", "\r\n"):
        file.write_bytes(f" s3cret\u00e4{ending}".encode())
        config = read_settings(FleetSettings).kafka.client_config()
        assert (config["sasl.password"], config["sasl.username"]) == (" s3cret\u00e4", "fleet")
        assert "sasl.password.file" not in config
    monkeypatch.setenv("POSTBACK_KAFKA__EXTRA__SASL_PASSWORD", "s3cret")
    with pytest.raises(SettingsRefused, match="both set"):
        read_settings(FleetSettings)
