"""`postback topics create` on a real broker, and the effect of its group configuration."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from cli.devkit.broker import Broker
from cli.devkit.kafka import cluster
from cli.operations.topics import CountDifference, configure_groups, create_topics
from producers.connection import admin_client, partition_counts
from producers.errors import RequestRefused, TopicMissing
from schemas.groups import GROUPS
from schemas.settings import KafkaSettings
from tests.conftest import SharedBroker
from tests.postback_command import environment_of, postback_here
from tests.product import eventually

pytestmark = pytest.mark.broker


@pytest.fixture
def bare(broker: SharedBroker) -> Iterator[KafkaSettings]:
    """A fleet without topics."""
    settings = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        topic_prefix=f"bare{uuid.uuid4().hex[:8]}.",
        partitions=2,
        tier_delays_seconds=(0.5,),
    )
    yield settings
    with admin_client(settings) as admin:
        admin.delete_topics([name for name in admin.list_topics() if name.startswith(settings.topic_prefix)])


def names_of(settings: KafkaSettings) -> list[str]:
    return [spec.name for spec in settings.topics.specs(settings.partitions)]


def config_of(settings: KafkaSettings, topic: str) -> dict[str, str]:
    """A topic's effective configuration, with defaults."""
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    with admin_client(settings) as admin:
        entries = admin.describe_configs([resource], config_filter="all")["topic"][topic]
    return {name: entry["value"] for name, entry in entries.items()}


def group_config(settings: KafkaSettings, group: str) -> dict[str, str]:
    """The group's own configuration on the broker; asks until the broker has it."""
    resource = ConfigResource(ConfigResourceType.GROUP, group)
    with admin_client(settings) as admin:
        while not (entries := admin.describe_configs([resource])["group"][group]):
            pass
    assert {entry["config_source"] for entry in entries.values()} == {"DYNAMIC_GROUP_CONFIG"}
    return {name: entry["value"] for name, entry in entries.items()}


def test_missing_topics_are_created_with_their_layout_and_a_second_run_changes_nothing(bare: KafkaSettings) -> None:
    first = create_topics(bare)
    second = create_topics(bare)
    assert (sorted(first.created), first.existing) == (sorted(names_of(bare)), [])
    assert (second.created, sorted(second.existing)) == ([], sorted(names_of(bare)))
    assert second.differences == []
    counts = partition_counts(bare, [bare.topics.requests(), bare.topics.results, bare.topics.control])
    assert list(counts.values()) == [2, 2, 1]
    policies = [config_of(bare, topic)["cleanup.policy"] for topic in (bare.topics.endpoints, bare.topics.control)]
    # Records of disabled endpoints are kept for ever, and cancellations for longer than their jobs.
    assert policies == ["compact", "compact,delete"]


def test_other_partition_counts_are_reported_and_raised_only_when_asked(bare: KafkaSettings) -> None:
    create_topics(bare)
    wider = bare.model_copy(update={"partitions": 3})
    difference = CountDifference(bare.topics.results, 3, 2)
    reported = create_topics(wider)
    assert difference in reported.differences
    assert partition_counts(bare, [bare.topics.results]) == {bare.topics.results: 2}
    raised = create_topics(wider, raise_partitions=True)
    assert difference in raised.raised
    assert raised.differences == []
    assert partition_counts(bare, [bare.topics.results]) == {bare.topics.results: 3}
    narrower = create_topics(bare, raise_partitions=True)
    assert CountDifference(bare.topics.results, 2, 3) in narrower.differences
    assert narrower.raised == []


def test_on_three_brokers_each_topic_has_three_copies_and_a_write_is_two_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The brokers have Kafka's default of one copy here, so the copies come from the topics' settings."""
    ours, said_by_us = cluster.node_properties, ("default.replication.factor", "min.insync.replicas")
    monkeypatch.setattr(
        cluster,
        "node_properties",
        lambda node, quorum: {name: it for name, it in ours(node, quorum).items() if name not in said_by_us},
    )
    with Broker.start(brokers=3) as three:
        settings = KafkaSettings(bootstrap_servers=three.bootstrap_servers, partitions=2)
        done = postback_here("topics", "create", env=environment_of(settings))
        names = names_of(settings)
        # A busy broker's answer may come late; the creation is then repeated, and finds its topic there.
        counts = re.search(r"(\d+) topics created with 3 copies of each record(?:, (\d+) were there)?", done.stderr)
        assert counts is not None and sum(int(count or 0) for count in counts.groups()) == len(names)
        with admin_client(settings) as admin:
            partitions = [each for topic in admin.describe_topics(names) for each in topic["partitions"]]
        assert {len(each["replica_nodes"]) for each in partitions} == {3}
        assert {config_of(settings, name)["min.insync.replicas"] for name in names} == {"2"}


def test_on_one_broker_there_is_one_copy_and_topics_with_too_few_are_named(bare: KafkaSettings) -> None:
    assert create_topics(bare).replicas == 1
    wanting = create_topics(bare.model_copy(update={"replication_factor": 3}))
    assert wanting.thin == [CountDifference(name, 3, 1) for name in names_of(bare)]
    said = postback_here("topics", "create", "--replication-factor", "3", env=environment_of(bare))
    assert f"{bare.topics.results} has 1 of 3 copies: add them with kafka-reassign-partitions.sh" in said.stderr


def make_as_others_do(settings: KafkaSettings) -> None:
    """Create the fleet's topics like a tool that knows their names, partitions and some settings."""
    names = settings.topics
    told = {
        names.control: {"cleanup.policy": "delete", "retention.ms": "86400000"},
        names.requests(): {"cleanup.policy": "compact"},
        names.results: {"max.message.bytes": "262144", "message.timestamp.type": "LogAppendTime"},
        names.attempts: {"message.timestamp.type": "LogAppendTime", "retention.bytes": "1000000"},
        names.dead_letters: {
            "compression.type": "zstd",
            "message.timestamp.type": "LogAppendTime",
            "retention.ms": "-1",
        },
    }
    request = {
        spec.name: {
            "num_partitions": spec.partitions,
            "replication_factor": 1,
            "configs": told.get(spec.name, spec.config if spec.name not in names.tiers.values() else {}),
        }
        for spec in settings.topics.specs(settings.partitions)
    }
    with admin_client(settings) as admin:
        admin.create_topics(request)
        admin.wait_for_topics(list(request))


def test_topics_that_others_made_are_compared_by_property_and_set_right_when_asked(bare: KafkaSettings) -> None:
    make_as_others_do(bare)
    names = bare.topics
    tier = next(iter(names.tiers.values()))
    env = environment_of(bare)
    told = postback_here("topics", "create", env=env)
    assert told.returncode == 1
    complaints = {line for line in told.stderr.splitlines() if "--fix-config" in line}
    assert complaints == {
        f"postback: {topic} has {name}={found}, not {wanted}; --fix-config sets it"
        for topic, name, found, wanted in [
            (names.control, "cleanup.policy", "delete", "compact,delete"),
            (names.control, "retention.ms", "86400000", "2592000000"),
            (names.control, "message.timestamp.type", "CreateTime", "LogAppendTime"),
            (names.control, "segment.bytes", "1073741824", "16777216"),
            (names.control, "max.compaction.lag.ms", "9223372036854775807", "86400000"),
            (names.requests(), "cleanup.policy", "compact", "delete"),
            (names.results, "max.message.bytes", "262144", "1048576"),
            (names.attempts, "retention.bytes", "1000000", "-1"),
            (tier, "message.timestamp.type", "CreateTime", "LogAppendTime"),
            *(
                (topic, "compression.type", "producer", "lz4")
                for topic in (names.control, names.requests(), names.results, names.attempts, tier)
            ),
        ]
    }
    fixed = postback_here("topics", "create", "--fix-config", env=env)
    assert (fixed.returncode, len(fixed.stdout.splitlines())) == (0, len(complaints))
    assert f"set cleanup.policy of {names.control} from delete to compact,delete" in fixed.stdout.splitlines()
    eventually(lambda: create_topics(bare).misconfigured == [], 30, "a topic is not set right")
    assert config_of(bare, names.results)["max.message.bytes"] == "1048576"
    # A retention longer than ours stays, since ours would delete records that someone keeps.
    assert config_of(bare, names.dead_letters)["retention.ms"] == "-1"


def test_engines_get_lanes_of_their_own(bare: KafkaSettings) -> None:
    report = create_topics(bare, engines=("vllm",))
    assert {bare.topics.requests("vllm"), bare.topics.requests("vllm", bulk=True)} <= set(report.created)


def test_the_groups_session_timeout_is_as_low_as_the_broker_allows(bare: KafkaSettings) -> None:
    group = f"{bare.topic_prefix}inference"
    report = configure_groups(bare, [group])
    assert (report.session_timeout_ms, report.problems) == (6000, [])
    assert group_config(bare, group) == {
        "consumer.session.timeout.ms": "6000",
        "consumer.heartbeat.interval.ms": "1000",
    }


def test_more_replicas_than_brokers_is_refused_with_the_brokers_reason(bare: KafkaSettings) -> None:
    with pytest.raises(RequestRefused, match="could not be created"):
        create_topics(bare.model_copy(update={"replication_factor": 9}))


def test_a_topic_that_is_not_there_is_named_with_the_fix(bare: KafkaSettings) -> None:
    with pytest.raises(TopicMissing, match=r"model_requests does not exist: run `postback topics create`"):
        partition_counts(bare, [bare.topics.requests()])


def test_the_command_lays_out_a_fleet_and_may_be_repeated(bare: KafkaSettings) -> None:
    env = environment_of(bare, POSTBACK_KAFKA__EXTRA__CLIENT_RACK="rack-1")  # only workers use this setting
    first, second = postback_here("topics", "create", env=env), postback_here("topics", "create", env=env)
    assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(first.stdout.split()[1::2]) == sorted(names_of(bare))
    assert second.stdout == ""
    for name in GROUPS:
        assert group_config(bare, f"{bare.topic_prefix}{name}")["consumer.session.timeout.ms"] == "6000"
