"""A Kafka whose ACLs are exactly those of docs/DEPLOY.md, and one that refuses: roles work, or end with a reason."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from cli.devkit.broker import Broker
from cli.devkit.kafka import cluster
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from tests.ecs import log_lines
from tests.fleet_here import FleetHere, running_here
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.postback_command import environment_of, postback, postback_here
from tests.product import eventually

pytestmark = pytest.mark.broker

DEPLOY = Path(__file__).parents[2] / "docs" / "DEPLOY.md"
ROW = re.compile(
    r"^\| (?P<role>[^|]+) \| (?P<on>topic|group|transactional id|cluster) \| (?P<names>`[^|]+`) \| (?P<may>[^|]+) \|$"
)
USERS = {
    "producer": ("producer",),
    "producer with a receipt (`submit --receipt`)": ("keeper",),
    "reader of results (`results`, `submit --wait`)": ("producer", "collector"),
    "worker": ("worker",),
    "delivery": ("delivery",),
    "gateway": ("gateway",),
    "exporter": ("exporter",),
    "`topics create`": ("topics",),
    "operator": ("operator",),
}
TYPES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "Alter": AclOperation.ALTER,
    "AlterConfigs": AclOperation.ALTER_CONFIGS,
}
ADMIN = "admin"


def credentials(user: str) -> dict[str, str]:
    return {
        "POSTBACK_KAFKA__EXTRA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "POSTBACK_KAFKA__EXTRA__SASL_MECHANISM": "PLAIN",
        "POSTBACK_KAFKA__EXTRA__SASL_USERNAME": user,
        "POSTBACK_KAFKA__EXTRA__SASL_PASSWORD": f"{user}-secret",
    }


@pytest.fixture(scope="module")
def guarded() -> Iterator[KafkaSettings]:
    """A broker with a listener that authenticates users and applies ACLs; the admin may do anything."""
    [port] = cluster.free_ports(1)
    users = " ".join(f'user_{user}="{user}-secret"' for user in {ADMIN, *chain(*USERS.values())})
    jaas = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
    ours = cluster.node_properties

    def properties(node: cluster.Node, quorum: tuple[cluster.Node, ...]) -> dict[str, str]:
        plain = ours(node, quorum)
        return {
            **plain,
            "listeners": f"{plain['listeners']},FLEET://127.0.0.1:{port}",
            "advertised.listeners": f"{plain['advertised.listeners']},FLEET://127.0.0.1:{port}",
            "listener.security.protocol.map": f"{plain['listener.security.protocol.map']},FLEET:SASL_PLAINTEXT",
            "listener.name.fleet.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.fleet.plain.sasl.jaas.config": jaas,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{ADMIN}",
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "node_properties", properties)
        broker = Broker.start()
    with broker:
        names = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
        yield KafkaSettings.model_validate(
            {
                "bootstrap_servers": f"127.0.0.1:{port}",
                "topic_prefix": f"acl{uuid.uuid4().hex[:8]}.",
                "partitions": 4,
                "tier_delays_seconds": (0.3, 0.6),
                "extra": {**names, "sasl.username": ADMIN, "sasl.password": f"{ADMIN}-secret"},
            }
        )


@dataclass(frozen=True)
class Documented:
    """One name in the document's table of ACLs, with the operations of its row."""

    role: str
    on: str
    name: str
    operations: frozenset[str]


def documented_names() -> list[Documented]:
    """The names in all rows of the document's table."""
    rows = [row for line in DEPLOY.read_text().splitlines() if (row := ROW.match(line))]
    return [
        Documented(row["role"], row["on"], name.strip("`"), frozenset(row["may"].split(", ")))
        for row in rows
        for name in row["names"].split(", ")
    ]


def documented(prefix: str) -> list[AclBinding]:
    """Return the ACL bindings of Kafka that the document's table describes."""
    names = documented_names()
    assert {each.role for each in names} == USERS.keys()
    return [_binding(prefix, each, may, user) for each in names for may in each.operations for user in USERS[each.role]]


def _binding(prefix: str, documented: Documented, may: str, user: str) -> AclBinding:
    on, name = TYPES[documented.on], documented.name
    kind = ResourcePatternType.PREFIXED if name.endswith("*") else ResourcePatternType.LITERAL
    full = name if on is ResourceType.BROKER else prefix + name.removesuffix("*")
    return AclBinding(on, full, kind, f"User:{user}", "*", OPERATIONS[may], AclPermissionType.ALLOW)


@pytest.fixture
def fleet_here(guarded: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[FleetHere]:
    admin = AdminClient(guarded.client_config())
    for made in admin.create_acls(documented(guarded.topic_prefix)).values():
        made.result(20)
    with running_here(guarded, tmp_path) as started:
        yield started


def test_every_role_does_its_work_with_the_operations_of_the_table(fleet_here: FleetHere) -> None:
    fleet = fleet_here.kafka

    def run(user: str, *arguments: str, given: bytes = b"") -> str:
        done = postback_here(*arguments, env=environment_of(fleet, **credentials(user)), given=given)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    for _ in range(2):  # the first run creates the topics, and the second compares them
        told = run("topics", "topics", "create", "--fix-config", "--engine", "big")
        assert "session timeout" not in told
        assert "not compared" not in told
    assert "a killed worker's partitions go to other workers after 6 s" in told

    fleet_here.callbacks.up()
    worker = fleet_here.worker("w1", **credentials("worker"))
    delivery = fleet_here.deliver("d1", **credentials("delivery"))
    exporter = fleet_here.exporter("e1", **credentials("exporter"))
    shadow = fleet_here.worker("s1", "--engine", "echo", "--model", "next", "--shadow", **credentials("worker"))
    run("operator", "rollout", "start", "--alias", "default", "--candidate", "next", "--sample", "1")
    jobs = b"".join(json.dumps({"job_id": f"job_{number}", "prompt": "Why?"}).encode() + b"\n" for number in range(6))
    answered = run("producer", "submit", "-", "--callback-url", fleet_here.callbacks.url, "--wait", given=jobs)
    assert "6 of 6" in answered
    fleet_here.wait_for_callbacks(6, 60)
    named = b'{"prompt": "Why?", "model_id": "gpt-4o-mini"}'
    for user in ("producer", "keeper"):
        assert 'no worker announces "gpt-4o-mini"' in run(user, "submit", "-", "--check", given=named)
    fleet_here.put([b"{}"])  # this record is no job, so it becomes a dead letter
    eventually(lambda: len(fleet_here.dead_letters()) == 1, 30, "what is no job is not given up")

    assert "delivered" in run("operator", "endpoints", "deliveries", "job_0")
    assert "in all" in run("operator", "topics", "backlog")
    assert "faults: 0, warnings: 1" in run("operator", "doctor")  # the warning names the dead letter
    assert run("operator", "cancel", "job_of_tomorrow")
    assert run("operator", "endpoints", "disable", "https://hooks.example/")
    assert run("operator", "endpoints", "list")
    assert "rejected" in run("operator", "dead-letters", "list")
    assert run("operator", "replay", "--tenant", "default", "--yes")
    assert run("operator", "replay", "--tenant", "default", "--undelivered", "--yes")
    assert run("operator", "dead-letters", "redrive", "--yes")
    eventually(lambda: len(fleet_here.callbacks.received) >= 12, 60, "the replayed event is not called back")
    assert exporter.page("/backlog")[1]["models"] == {"default": 1, "echo": 1}
    compared = "postback_rollout_samples_total{compared}"
    eventually(lambda: shadow.metrics().get(compared, 0) >= 6, 60, "the shadow worker compares nothing")
    assert json.loads(run("operator", "rollout", "status", "--json"))[0]["compared"] >= 6
    run("operator", "rollout", "abort")
    roles = (worker, delivery, exporter, shadow)
    eventually(lambda: all(role.ready() == (True, []) for role in roles), 60, "a role is not ready")
    for role in roles:
        assert "AUTHORIZATION" not in role.said()
        assert role.terminate() == 0


def test_a_gateway_does_its_work_with_the_operations_of_the_table(fleet_here: FleetHere) -> None:
    topics = postback_here("topics", "create", env=environment_of(fleet_here.kafka, **credentials("topics")))
    assert topics.returncode == 0, topics.stderr
    fleet_here.callbacks.tenants = ("acme",)
    fleet_here.callbacks.up()
    fleet_here.worker("w2", **credentials("worker"))
    fleet_here.deliver("d2", **credentials("delivery"))
    with running_gateway(fleet_here, **credentials("gateway")) as door:
        key = door.key("acme")
        told = {"name": "all", "url": fleet_here.callbacks.url, "event_types": ["inference.succeeded"]}
        assert door.post("/v1/webhook_endpoints", key, json=told).status_code == 200
        assert door.post("/v1/jobs", key, json={"job_id": "by-http", "prompt": "Why?"}).status_code == 202
        eventually(lambda: bool(fleet_here.callbacks.events.get("by-http")), 120, door.role.said)
        listed = door.get("/v1/models", key).json()
        assert "echo" in [each["id"] for each in listed.get("data", ())], listed

        body = {"model": "echo", "messages": [{"role": "user", "content": "Why?"}]}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        files = {"file": ("in.jsonl", json.dumps(line).encode())}
        file = door.post("/v1/files", key, files=files, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        path = f"/v1/batches/{door.post('/v1/batches', key, json=asked).json()['id']}"
        eventually(lambda: door.get(path, key).json()["status"] == "completed", 120, door.role.said)
        assert door.post("/v1/jobs", key, json={"job_id": "late", "prompt": "Why?"}).status_code == 202
        assert door.post("/v1/jobs/late/cancel", key).status_code in (200, 409)

        redriven = fleet_here.kafka.topics.redriven
        # The tests of this file share their topics, which may already hold dead letters and marks.
        before, marks = len(fleet_here.dead_letters()), len(fleet_here.read(redriven))
        fleet_here.put([b"{}"], [("tenant", b"acme")])  # this record is no job, so it becomes a dead letter
        eventually(lambda: len(fleet_here.dead_letters()) > before, 60, door.role.said)
        assert "The letter is put back." in redriven_by_the_page(door, key)
        assert len(fleet_here.read(redriven)) == marks + 1
        assert "Jobs a second" in fleet_by_the_page(door)
        assert "AUTHORIZATION" not in door.role.said()


def fleet_by_the_page(door: Gateway) -> str:
    """Sign in at the console page as an operator, and return the text of the page of the fleet."""
    door.post("/console/sign-in", data={"credential": door.key("ops", scopes="admin")})
    return door.get("/console/fleet").text


def redriven_by_the_page(door: Gateway, key: str) -> str:
    """Sign in at the console page, put its only dead letter back, and return the text of the next page."""
    door.post("/console/sign-in", data={"credential": key})
    page = door.get("/console/letters").text
    [(token, letter)] = re.findall(
        r'name="form_token" value="(\w+)">\s*<input type="hidden" name="id" value="(\S+)">', page
    )
    return door.post("/console/letters/redrive", data={"form_token": token, "id": letter}).text


def test_a_receipt_needs_read_access_to_the_lanes_only_to_resume_an_interrupted_run_and_says_so_without_it(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    fleet, jobs = fleet_here.kafka, tmp_path / "jobs.jsonl"
    assert postback_here("topics", "create", env=environment_of(fleet, **credentials("topics"))).returncode == 0
    jobs.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')

    def submit(user: str, receipt: Path) -> subprocess.CompletedProcess[str]:
        return postback_here(
            "submit", str(jobs), "--receipt", str(receipt), env=environment_of(fleet, **credentials(user))
        )

    def breaks_off(receipt: Path) -> None:
        entries = [json.loads(line) for line in receipt.read_text().splitlines()]
        receipt.write_text("".join(json.dumps({**entry, "accepted": None}) + "\n" for entry in entries))

    for user in ("producer", "keeper"):
        receipt = tmp_path / f"{user}.jsonl"
        assert submit(user, receipt).returncode == 0
        breaks_off(receipt)
        again = submit(user, receipt)
        if user == "keeper":
            assert again.returncode == 0
            assert again.stderr.splitlines()[0].startswith("postback: 2 jobs of an earlier run")
        else:
            refused = f"postback: Kafka refuses access (TopicAuthorizationFailed: {fleet.topics.requests()}"
            assert (again.returncode, again.stdout, again.stderr.count("\n")) == (1, "", 1)
            assert again.stderr.startswith(refused)
            assert "; that is to be read to find out which jobs of an earlier run arrived: check " in again.stderr


def settle(fleet: KafkaSettings, job_id: str) -> None:
    """Write a result, as a worker does."""
    result = write_result(Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="42", created_at=1))
    producer = Producer(fleet.client_config())
    producer.produce(fleet.topics.results, result)
    assert producer.flush(20) == 0


def test_readers_of_the_table_get_results_and_others_see_the_refused_operation(fleet_here: FleetHere) -> None:
    fleet = fleet_here.kafka
    assert postback_here("topics", "create", env=environment_of(fleet, **credentials("topics"))).returncode == 0
    settle(fleet, "job_read")
    for user, status, said in (
        ("collector", 0, "1 of 1 jobs have a result, 1 succeeded"),
        ("keeper", 1, f"Kafka refuses access (topic {fleet.topics.results}); that is to be read to collect results: "),
    ):
        done = postback_here("results", "--id", "job_read", env=environment_of(fleet, **credentials(user)))
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert done.stderr.startswith(f"postback: {said}")


def test_a_topic_with_hidden_configuration_is_reported_as_not_compared(fleet_here: FleetHere) -> None:
    env = environment_of(fleet_here.kafka, **credentials("topics"))
    assert postback_here("topics", "create", env=env).returncode == 0
    hidden = AclBinding(
        ResourceType.TOPIC,
        fleet_here.kafka.topics.results,
        ResourcePatternType.LITERAL,
        "User:topics",
        "*",
        AclOperation.DESCRIBE_CONFIGS,
        AclPermissionType.DENY,
    )
    admin = AdminClient(fleet_here.kafka.client_config())
    admin.create_acls([hidden])[hidden].result(20)
    try:
        done = postback_here("topics", "create", env=env)
    finally:
        admin.delete_acls([_filter_of(hidden)])[_filter_of(hidden)].result(20)
    assert done.returncode == 0
    results = fleet_here.kafka.topics.results
    told = f"postback: the configuration of {results} was not compared: the broker does not show it"
    assert [line for line in done.stderr.splitlines() if line.startswith(told)]


def _filter_of(binding: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )


def test_a_producer_may_not_read_what_others_ask(fleet_here: FleetHere) -> None:
    """Proves that the ACLs are in force."""
    env = environment_of(fleet_here.kafka, **credentials("producer"))
    done = postback_here("dead-letters", "list", env=env)
    assert done.returncode == 1
    assert "Kafka refuses access" in done.stderr


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
