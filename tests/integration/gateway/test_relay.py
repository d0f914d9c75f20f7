"""The relay on a real Kafka and both databases; `tests/simulation/test_gateway_histories.py` has its faults."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from bench.committed import committed_records
from gateway.accept.acceptance import Acceptance
from gateway.accept.jobs import NewJob
from gateway.accept.outbox import put_record
from gateway.accept.position import waiting
from gateway.accept.relay import Relay
from gateway.access import Principal
from gateway.access.principal import DEFAULT_SCOPES
from gateway.store.settings import StoreSettings
from gateway.store.store import Store
from schemas.affinity import shard_of
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.accepted import accept_jobs
from tests.integration.gateway.running_parts import running_parts
from tests.messages import value_of
from tests.postgres_server import PostgresServer
from tests.product import PARTITIONS, eventually

PRINCIPAL = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)
CLOCK = SystemClock()


def relay_of(store: Store, kafka: KafkaSettings) -> Relay:
    return Relay(store, kafka, CLOCK, Metrics())


def acceptance_of(store: Store, kafka: KafkaSettings) -> Acceptance:
    return Acceptance(store, kafka, StoreSettings(), CLOCK, Metrics())


def restored(store_url: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """Back up an open store, and restore the backup; return the URL of the restored store."""
    if store_url.startswith("sqlite"):
        source, target = sqlite3.connect(store_url.removeprefix("sqlite:///")), sqlite3.connect(folder / "restored.db")
        with closing(source), closing(target):
            source.backup(target)
        return f"sqlite:///{folder / 'restored.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    server.dump(store_url, folder / "backup")
    return server.restore(folder / "backup")


def accept(store: Store, kafka: KafkaSettings, *ids: str) -> None:
    new = [NewJob(job_id, "/v1/jobs", json.dumps({"job_id": job_id}).encode()) for job_id in ids]
    store.write_now(lambda connection: accept_jobs(connection, PRINCIPAL, new, kafka.topics))


def on_kafka(kafka: KafkaSettings) -> Counter[str]:
    found = committed_records(kafka.client_config(), kafka.topics.requests())
    return Counter(json.loads(value_of(message))["job_id"] for message in found)


def is_empty(store: Store) -> Callable[[], bool]:
    return lambda: store.read_now(waiting) == (0, 0)


def test_each_accepted_job_is_on_kafka_once_in_the_tenants_partitions(store: Store, fleet: KafkaSettings) -> None:
    with running_parts(relay_of(store, fleet)):
        for start in range(0, 60, 3):
            accept(store, fleet, *(f"j{number}" for number in range(start, start + 3)))
        eventually(is_empty(store), 60, "rows wait")
    with running_parts(relay_of(store, fleet)):
        accept(store, fleet, "last")
        eventually(is_empty(store), 60, "rows wait")
    assert on_kafka(fleet) == Counter([*(f"j{number}" for number in range(60)), "last"])
    places = {message.partition() for message in committed_records(fleet.client_config(), fleet.topics.requests())}
    assert places == set(shard_of("acme", PARTITIONS))


def test_a_restored_backup_loses_and_doubles_nothing(
    store: Store, store_url: str, fleet: KafkaSettings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    accept(store, fleet, *(f"a{number}" for number in range(20)))
    restored_url = restored(store_url, tmp_path, request)
    with running_parts(relay_of(store, fleet)):
        accept(store, fleet, *(f"b{number}" for number in range(20)))
        eventually(is_empty(store), 60, "rows wait")
    again = Store.open(restored_url)
    try:
        assert again.read_now(waiting)[0] == 20
        with running_parts(acceptance_of(again, fleet), relay_of(again, fleet)):
            eventually(lambda: again.hold.refusal is None, 60, "nothing is accepted")
            accept(again, fleet, *(f"c{number}" for number in range(20)))
            eventually(is_empty(again), 60, "rows wait")
    finally:
        again.close()
    assert on_kafka(fleet) == Counter(f"{letter}{number}" for letter in "abc" for number in range(20))


def test_records_of_a_missing_topic_wait_for_it_and_readiness_says_so(store: Store, fleet: KafkaSettings) -> None:
    missing = f"{fleet.topic_prefix}missing"
    store.write_now(lambda connection: put_record(connection, missing, b"k", b"v"))
    relay = relay_of(store, fleet)
    with running_parts(relay):
        eventually(lambda: "UNKNOWN_TOPIC" in " ".join(relay.reasons()), 60, "readiness does not say so")
        assert store.read_now(waiting)[0] == 1
        admin = AdminClient(fleet.client_config())
        admin.create_topics([NewTopic(missing, 1, 1)])[missing].result(30)
        eventually(is_empty(store), 60, "rows wait")
        assert relay.reasons() == []
