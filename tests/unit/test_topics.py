"""Topics of a fleet, their creation, the published schemas of their records, and messages about invalid settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kafka import errors as kafka_errors
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from cli.operations import topics as producers_topics
from cli.operations.topics import create_topics
from producers.errors import RequestRefused
from schemas import topics
from schemas.codec import InvalidJob, Origin, read_job, write_result
from schemas.event import event_body
from schemas.job import LONGEST_TTL_SECONDS
from schemas.outcome import Outcome
from schemas.result import Citation, Result, ResultError, Support, Timings, Usage
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
from scripts.publish.client_shapes import client_shapes
from scripts.publish.wire_schemas import CLIENT, FOLDER, documents
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings
from workers.engines.base import RequestRejected
from workers.engines.registry import engine_settings
from workers.engines.vllm.chat import MAX_PATTERNS, MAX_PROPERTIES, MAX_SCHEMA_CHARS, check_schema
from workers.enrichment.answering.profile import Profiles
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


PUBLISHED = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
JSON_SCHEMAS = {name: json.loads(text) for name, text in PUBLISHED.items() if name.endswith(".json")}
ASYNCAPI: dict[str, Any] = yaml.safe_load(PUBLISHED["asyncapi.yaml"])
RESULTS = [
    Result(job_id="job_1", outcome=Outcome.FAILED, error=ResultError(code="c", message="m"), created_at=1),
    Result(
        job_id="job_1",
        custom_id="row 1",
        outcome=Outcome.SUCCEEDED,
        text="Because.",
        confidence=0.5,
        sources=["arxiv:1"],
        citations=[Citation(start=0, end=3, source="arxiv:1", support=Support.FUZZY)],
        usage=Usage(prompt_tokens=1),
        timings=Timings(queued_ms=0.5),
        finish_reason="stop",
        created_at=1,
    ),
]


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(JSON_SCHEMAS[name])


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(reference: str, document: dict[str, Any]) -> Any:
    """The target of a local JSON pointer or of a reference to another document; KeyError if there is none."""
    if not reference.startswith("#/"):
        return JSON_SCHEMAS[reference.removeprefix("./")]
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return resolve(node["$ref"], document) if "$ref" in node else node


def test_the_published_files_are_fresh() -> None:
    assert documents() == PUBLISHED, "run `python -m scripts.publish`"
    assert client_shapes() == CLIENT.read_text(encoding="utf-8"), "run `python -m scripts.publish`"


def test_each_json_schema_is_valid_and_has_a_name() -> None:
    for name, schema in JSON_SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:postback:schema:{name.removesuffix('.json')}:1"
        assert schema["title"]


def test_every_reference_leads_somewhere() -> None:
    for name, document in {**JSON_SCHEMAS, "asyncapi.yaml": ASYNCAPI}.items():
        found = list(references(document))
        assert found or name == "worker.json"  # a flat document
        assert all(resolve(reference, document) for reference in found), name


def test_the_jobs_schema_agrees_with_the_reader() -> None:
    good = [
        {"prompt": "a"},
        {"prompt": "a", "callback_url": "https://consumer.example/hook", "messages": None, "unknown": 1},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "max_tokens": 5},
        {"prompt": "a", "sources": {"urls": ["http://facts.example:8080/a?b"]}, "metadata": {"a": "b"}},
    ]
    bad = [
        {},
        {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": "a", "priority": 10},
        {"prompt": "a", "max_tokens": "5"},
        {"prompt": "a", "job_id": "a b"},
        {"prompt": "a", "callback_url": "https://user:pass@consumer.example/"},
        {"prompt": "a", "callback_url": "ftp://consumer.example/"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ]
    for job in good:
        read_job(json.dumps(job).encode(), None, Origin("topic", 0, 0), 0)
        assert validator("job.json").is_valid(job), job
    for job in bad:
        with pytest.raises(InvalidJob):
            read_job(json.dumps(job).encode(), None, Origin("topic", 0, 0), 0)
        assert not validator("job.json").is_valid(job), job


def test_written_results_and_events_fit_their_schemas_and_events_of_another_kind_do_not() -> None:
    for result in RESULTS:
        event = json.loads(event_body(result, "msg_1", "acme"))
        validator("result.json").validate(json.loads(write_result(result)))
        validator("event.json").validate(event)
        for wrong in ({"type": "batch.completed"}, {"tenant": "no tenant"}, {"data": {"id": "job_1"}}):
            assert not validator("event.json").is_valid({**event, **wrong})
        assert not validator("event.json").is_valid({name: event[name] for name in event if name != "tenant"})


def test_the_asyncapi_document_covers_every_topic_of_a_fleet_and_its_webhook() -> None:
    addresses = {channel["address"] for channel in ASYNCAPI["channels"].values()}

    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert addresses == {spec.name for spec in Topics().specs(12)} | {None}


def test_the_topics_are_described_as_they_are_made() -> None:
    for spec in Topics().specs(12):
        described = ASYNCAPI["channels"][spec.name]["bindings"]["kafka"]["topicConfiguration"]
        flat = {key: ",".join(value) if isinstance(value, list) else str(value) for key, value in described.items()}

        # AsyncAPI's Kafka binding has no fields for these settings.
        unsaid = {"compression.type", "message.timestamp.type", "max.compaction.lag.ms", "segment.bytes"}
        assert flat == {key: value for key, value in spec.config.items() if key not in unsaid}


def test_every_header_that_records_may_carry_is_described() -> None:
    constants = {value for name, value in vars(topics).items() if name.isupper() and isinstance(value, str)}
    described = {
        header
        for message in ASYNCAPI["components"]["messages"].values()
        for header in message.get("headers", {}).get("properties", {})
    }

    assert constants <= described


def test_every_channel_has_messages_with_payloads_and_every_operation_uses_one_of_them() -> None:
    for channel in ASYNCAPI["channels"].values():
        assert channel["messages"]
        for message in channel["messages"].values():
            assert "payload" in resolve(message["$ref"], ASYNCAPI)
        assert all(resolve(server["$ref"], ASYNCAPI)["protocol"] in ("kafka", "https") for server in channel["servers"])
    for operation in ASYNCAPI["operations"].values():
        place = operation["channel"]["$ref"]
        messages = [reference["$ref"] for reference in operation["messages"]]
        assert operation["action"] in ("send", "receive")
        assert messages
        assert all(message.startswith(f"{place}/messages/") for message in messages)
        assert {message.rpartition("/")[2] for message in messages} <= set(resolve(place, ASYNCAPI)["messages"])


# -- limits of jobs' schemas -------------------------------------------------------------------------------------------


def properties(count: int, **each: str) -> dict[str, Any]:
    return {"type": "object", "properties": {f"k{n}": {"type": "string", **each} for n in range(count)}}


def test_large_schemas_are_taken_and_those_that_would_keep_an_engine_busy_are_rejected_by_name() -> None:
    form = Profiles.load()["finance"].response_format
    assert form is not None
    assert form.json_schema is not None
    check_schema(form.json_schema.schema_)
    check_schema({"anyOf": [properties(MAX_PROPERTIES), properties(MAX_PATTERNS, pattern="^a")]})
    patterns = {"patternProperties": dict.fromkeys("abcdefghijklmnopqrstu")}
    for schema, why in (
        (properties(MAX_PROPERTIES + 1), "an object with 501 properties, and 500 are allowed"),
        ({"items": [{"anyOf": [properties(MAX_PROPERTIES + 1)]}]}, "an object with 501 properties"),
        ({"a": properties(30, pattern="^a"), "b": patterns}, "51"),
        ({"const": "x" * MAX_SCHEMA_CHARS}, "characters, and 65536 are allowed"),
        (json.loads('{"items":' * 900 + json.dumps(properties(501)) + "}" * 900), "501 properties"),
    ):
        with pytest.raises(RequestRejected) as rejected:
            check_schema(schema)
        assert rejected.value.field == "response_format.json_schema.schema"
        assert why in rejected.value.reason
