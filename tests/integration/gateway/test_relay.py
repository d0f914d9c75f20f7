"""The relay: every accepted record is on Kafka exactly once, on both databases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from devkit.committed import committed_records
from gateway.accept.jobs import NewJob, accept_jobs
from gateway.accept.position import waiting
from gateway.accept.relay import Relay
from gateway.access import Principal
from gateway.access.principal import DEFAULT_SCOPES
from gateway.store.store import Store
from producers.sharding import shard_of
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.gateway.running_parts import running_parts
from tests.messages import value_of
from tests.product import PARTITIONS, eventually

PRINCIPAL = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)
CLOCK = SystemClock()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store.open(store_url)
    yield opened
    opened.close()


def relay_of(store: Store, kafka: KafkaSettings) -> Relay:
    return Relay(store, kafka, CLOCK, Metrics())


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
