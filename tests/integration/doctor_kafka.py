"""A Kafka with a listener for each way to connect, and a fleet with many faults at once, for tests of the doctor."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from cli.devkit.broker import Broker
from cli.devkit.kafka import cluster
from cli.operations.topics import create_topics
from schemas.codec import write_result
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from schemas.worker import announcement, worker_key, write_announcement
from telemetry.clock import SystemClock
from tests.integration.certificates import Authority

CALLBACK = b"https://hooks.example/in?token=s3cret"
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ManyDoors:
    """The addresses of one broker's listeners."""

    plain: str
    sasl: str
    tls: str
    elsewhere: str
    """A listener whose answers send clients to a port without a process."""
    ca_file: Path


@contextmanager
def many_doors(folder: Path) -> Iterator[ManyDoors]:
    """A broker with a listener for each protocol, and with ACLs: users may do anything that no rule denies."""
    authority = Authority.create(folder)
    sasl, tls, elsewhere, nowhere = cluster.free_ports(4)
    ours = cluster.node_properties

    def properties(node: cluster.Node, quorum: tuple[cluster.Node, ...]) -> dict[str, str]:
        plain = ours(node, quorum)
        ports = {"FLEET": sasl, "SECURE": tls, "ELSEWHERE": elsewhere}
        kinds = "FLEET:SASL_PLAINTEXT,SECURE:SSL,ELSEWHERE:PLAINTEXT"
        advertised = {**ports, "ELSEWHERE": nowhere}
        return {
            **plain,
            "listeners": plain["listeners"] + _listeners(ports),
            "advertised.listeners": plain["advertised.listeners"] + _listeners(advertised),
            "listener.security.protocol.map": f"{plain['listener.security.protocol.map']},{kinds}",
            "listener.name.fleet.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.fleet.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule "
            'required user_ann="right";',
            "listener.name.secure.ssl.keystore.type": "PEM",
            "listener.name.secure.ssl.keystore.location": str(_keystore(authority, folder)),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "offsets.retention.minutes": "60",
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "node_properties", properties)
        with Broker.start() as broker:
            others = {"sasl": sasl, "tls": tls, "elsewhere": elsewhere}
            addresses = {name: f"127.0.0.1:{port}" for name, port in others.items()}
            yield ManyDoors(plain=broker.bootstrap_servers, ca_file=authority.ca_file, **addresses)


def _listeners(ports: Mapping[str, int]) -> str:
    return "".join(f",{name}://127.0.0.1:{port}" for name, port in ports.items())


def _keystore(authority: Authority, folder: Path) -> Path:
    """Copy the server's key and certificate to a file that the broker can read."""
    keystore = folder / "broker.pem"
    keystore.write_bytes(authority.chain_file().read_bytes())
    return keystore


def empty_fleet(bootstrap_servers: str) -> KafkaSettings:
    """Return the settings of a fleet without topics."""
    return KafkaSettings(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=f"d{uuid.uuid4().hex[:8]}.",
        partitions=2,
        tier_delays_seconds=(0.5,),
    )


def put_results(kafka: KafkaSettings, *headers: tuple[str, bytes], topic: str = "") -> None:
    """Write the results of two jobs, with these headers, to the topic; by default to the topic of results."""
    producer = Producer(kafka.client_config())
    for job_id in ("job_1", "job_2"):
        result = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="42", created_at=1)
        producer.produce(topic or kafka.topics.results, write_result(result), job_id.encode(), 0, headers=list(headers))
    assert producer.flush(_SECONDS) == 0


def broken_fleet(bootstrap_servers: str) -> KafkaSettings:
    """Make a fleet whose topics, offsets, workers and endpoints have a fault each."""
    kafka = empty_fleet(bootstrap_servers)
    names, admin = kafka.topics, AdminClient(kafka.client_config())
    for made in admin.create_topics([NewTopic(names.events, 1, 1)]).values():
        made.result(_SECONDS)
    create_topics(kafka)
    _put_records(kafka)
    for deleted in admin.delete_topics([names.shadow]).values():
        deleted.result(_SECONDS)
    _configure(admin, names.requests(bulk=True), "retention.ms", "1000")
    _configure(admin, names.endpoints, "cleanup.policy", "delete")
    _configure(admin, names.batch_requests, "min.insync.replicas", "2")
    _deny(admin, names.tier(0.5))
    _deny(admin, names.attempts, AclOperation.DESCRIBE_CONFIGS)
    _deny(admin, f"{kafka.topic_prefix}expansion", AclOperation.READ, ResourceType.GROUP)
    _deny(admin, f"{kafka.topic_prefix}expansion.doctor", AclOperation.WRITE, ResourceType.TRANSACTIONAL_ID)
    return kafka


def _put_records(kafka: KafkaSettings) -> None:
    names, producer, now_ms = kafka.topics, Producer(kafka.client_config()), int(SystemClock().time() * 1000)
    producer.produce(names.requests(), b'{"prompt": "Why?"}')
    result = Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="42", created_at=1)
    producer.produce(names.results, write_result(result), headers=[("job-id", b"job_1"), ("callback-url", CALLBACK)])
    attempt = {"job_id": "job_1"}
    producer.produce(names.attempts, json.dumps(attempt).encode())
    headers = {"reason": "timeout", "job-id": "job_1", "callback-url": "https://hooks.example/in?token=s3cret"}
    headers |= {"source-topic": names.results, "source-partition": "0", "source-offset": "0", "webhook-id": "msg_1"}
    producer.produce(names.dead_letters, b"{}", headers=list(headers.items()))
    disabled = EndpointRecord(
        tenant="acme", url="https://hooks.example/in?token=s3cret", state=EndpointState.DISABLED, at=now_ms
    )
    producer.produce(names.endpoints, write_endpoint(disabled), key_bytes(disabled.key), 0)
    # Three announcements at once, as of two processes with the name w3.
    workers = ("w1", "1.0", now_ms), ("w2", "2.0", now_ms + 3_600_000), *(("w3", "1.0", now_ms),) * 3
    for replica, version, at in workers:
        said = announcement(replica, None, ["echo"], at, version)
        producer.produce(names.workers, write_announcement(said), worker_key(replica), 0)
    assert producer.flush(_SECONDS) == 0


def _configure(admin: AdminClient, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    for changed in admin.incremental_alter_configs([resource]).values():
        changed.result(_SECONDS)


def _deny(
    admin: AdminClient,
    name: str,
    denied: AclOperation = AclOperation.WRITE,
    kind: ResourceType = ResourceType.TOPIC,
) -> None:
    """Deny an operation on a resource.

    On a topic, allow all else by a rule, since a resource's first rule ends Kafka's default of allowing. Another
    resource keeps no right: a right to another operation would include Describe.
    """
    rules = [(denied, AclPermissionType.DENY)]
    if kind is ResourceType.TOPIC:
        rules.append((AclOperation.ALL, AclPermissionType.ALLOW))
    bindings = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", may, permission)
        for may, permission in rules
    ]
    for made in admin.create_acls(bindings).values():
        made.result(_SECONDS)
