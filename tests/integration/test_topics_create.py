"""`postback topics create` on a real broker, and that its group configuration takes effect there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from kafka.admin import ConfigResource, ConfigResourceType
from postback_command import environment_of, postback

from devkit.broker import Broker
from producers.connection import admin_client, partition_counts
from producers.errors import RequestRefused, TopicMissing
from producers.topics import PartitionDifference, configure_groups, create_topics
from schemas.groups import GROUPS
from schemas.settings import KafkaSettings

pytestmark = pytest.mark.broker


@pytest.fixture
def bare(broker: Broker) -> Iterator[KafkaSettings]:
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


def group_config(settings: KafkaSettings, group: str) -> dict[str, str]:
    """What the broker says that the group has of its own; asked until its metadata has arrived there."""
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
    with admin_client(bare) as admin:
        topics = (bare.topics.endpoints, bare.topics.control)
        answer = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics])
    policies = [answer["topic"][topic]["cleanup.policy"]["value"] for topic in topics]
    assert policies == ["compact", "compact,delete"]  # a disabled endpoint stays one; no job outlives its cancellation


def test_other_partition_counts_are_reported_and_raised_only_when_asked(bare: KafkaSettings) -> None:
    create_topics(bare)
    wider = bare.model_copy(update={"partitions": 3})
    difference = PartitionDifference(bare.topics.results, 3, 2)
    reported = create_topics(wider)
    assert difference in reported.differences
    assert partition_counts(bare, [bare.topics.results]) == {bare.topics.results: 2}
    raised = create_topics(wider, raise_partitions=True)
    assert difference in raised.raised
    assert raised.differences == []
    assert partition_counts(bare, [bare.topics.results]) == {bare.topics.results: 3}
    narrower = create_topics(bare, raise_partitions=True)
    assert PartitionDifference(bare.topics.results, 2, 3) in narrower.differences
    assert narrower.raised == []


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


def test_no_broker_is_one_line_that_says_what_to_do() -> None:
    done = postback("topics", "create", env=environment_of(KafkaSettings(bootstrap_servers="127.0.0.1:1")))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(
        "postback: no Kafka broker answers at 127.0.0.1:1: start one with `postback broker start`"
    )


def test_the_command_lays_out_a_fleet_and_may_be_repeated(bare: KafkaSettings) -> None:
    env = environment_of(bare, POSTBACK_KAFKA__EXTRA__CLIENT_RACK="rack-1")  # what is for workers only
    first, second = postback("topics", "create", env=env), postback("topics", "create", env=env)
    assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(first.stdout.split()[1::2]) == sorted(names_of(bare))
    assert second.stdout == ""
    for name in GROUPS:
        assert group_config(bare, f"{bare.topic_prefix}{name}")["consumer.session.timeout.ms"] == "6000"
