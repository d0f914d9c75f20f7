"""A Kafka that answers with refusals: a worker that starts there ends with a line that names the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from cli.devkit.broker import Broker
from cli.devkit.kafka import cluster
from schemas.settings import KafkaSettings
from tests.ecs import log_lines
from tests.postback_command import environment_of, postback

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def refusing() -> Iterator[Broker]:
    """A broker with ACLs that has no groups of KIP-848, like a broker before 4.0."""
    with pytest.MonkeyPatch.context() as patch:
        properties = {
            "group.coordinator.rebalance.protocols": "classic",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
        }
        patch.setattr(cluster, "SERVER_PROPERTIES", {**cluster.SERVER_PROPERTIES, **properties})
        with Broker.start() as broker:
            yield broker


@pytest.fixture
def there(refusing: Broker, make_fleet: Callable[[str], KafkaSettings]) -> KafkaSettings:
    return make_fleet(refusing.bootstrap_servers)


def test_a_kafka_without_the_new_groups_ends_a_worker_with_the_version_that_is_needed(there: KafkaSettings) -> None:
    done = postback("worker", "--engine", "echo", env=environment_of(there))
    assert done.returncode == 1
    said = log_lines(done.stderr)[-1]["message"]
    assert said.startswith("Kafka refuses membership in the group: ")
    assert "Kafka 4.0 or newer is needed" in said
    assert "Traceback" not in done.stderr


def deny(there: KafkaSettings, topic: str) -> None:
    denied = AclBinding(
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        "User:ANONYMOUS",
        "*",
        AclOperation.ALL,
        AclPermissionType.DENY,
    )
    admin = AdminClient(there.client_config())
    for made in admin.create_acls([denied]).values():
        made.result(20)


def test_a_denied_topic_is_reported_as_denied_and_not_as_an_absent_broker(there: KafkaSettings) -> None:
    deny(there, there.topics.results)
    done = postback("worker", "--engine", "echo", env=environment_of(there))
    assert (done.returncode, done.stdout) == (1, "")
    refused = f"Kafka refuses access to the topic {there.topics.results} (TOPIC_AUTHORIZATION_FAILED): check"
    assert log_lines(done.stderr)[-1]["message"].startswith(refused)


def test_a_letter_that_an_acl_keeps_from_its_lane_is_not_marked_as_put_back(there: KafkaSettings) -> None:
    """Without a check of the letter's own write, the client would commit the mark without the letter."""
    headers = {"webhook-id": "msg_1", "job-id": "job_1", "callback-url": "https://hooks.example/", "reason": "timeout"}
    source = {"source-topic": there.topics.results, "source-partition": "0", "source-offset": "0"}
    producer = Producer(there.client_config())
    producer.produce(there.topics.dead_letters, b"{}", "job_1", 0, headers=list((headers | source).items()))
    assert producer.flush(20) == 0
    deny(there, there.topics.tier(0.3))

    env = environment_of(there)
    done = postback("dead-letters", "redrive", "--yes", env=env)
    assert done.returncode == 1
    assert "TopicAuthorizationFailedError" in done.stderr
    assert "Traceback" not in done.stderr
    listed = json.loads(postback("dead-letters", "list", "--json", env=env).stdout)
    assert [(one["id"], one["redriven_at"]) for one in listed] == [("0:0", None)]
