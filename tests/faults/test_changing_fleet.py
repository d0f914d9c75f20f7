"""Changes around running workers: partitions are added, workers come and go, Kafka forgets an idle producer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from devkit.broker import Broker
from devkit.kafka import cluster
from schemas.settings import KafkaSettings
from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.product import eventually

pytestmark = pytest.mark.timeout(900)

MANY = 8
CHANGES = 4


def raise_partitions(ledgers: Ledgers, count: int) -> None:
    """Add partitions to the requests topic alone, so that the results topic has fewer partitions."""
    admin, topic = AdminClient(ledgers.kafka.client_config()), ledgers.kafka.topics.requests()
    for raised in admin.create_partitions([NewPartitions(topic, count)]).values():
        raised.result(60)
    # Wait, because Kafka answers before every broker knows the new partitions.
    eventually(lambda: len(admin.list_topics(topic, timeout=20).topics[topic].partitions) == count, 60, "none is added")


def test_partitions_that_are_added_while_workers_run_are_read_and_settled(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    jobs = ledgers.submit({"id": number, "ms": 5} for number in range(80))
    processes.start("a", "b")
    ledgers.wait_for_results(jobs, 120)
    raise_partitions(ledgers, 10)
    jobs += ledgers.submit(({"id": jobs + number, "ms": 5} for number in range(200)), partitions=10)
    ledgers.wait_for_results(jobs, 240)
    ledgers.assert_each_exactly_once(jobs)
    assert processes.terminate("a") == processes.terminate("b") == 0


def test_eight_workers_that_come_and_go_answer_every_job_once(ledgers: Ledgers, processes: StageProcesses) -> None:
    raise_partitions(ledgers, 12)
    processes.window = 8
    names = [f"w{number}" for number in range(MANY)]
    processes.start(*names)
    jobs, changing = 0, cycle(names)
    for _ in range(CHANGES):
        jobs += ledgers.submit(({"id": jobs + n, "ms": 50 + n % 400} for n in range(400)), partitions=12)
        ledgers.wait_for_results(jobs - 250, 240)  # some jobs have to be in flight when the worker is killed
        killed, stopped = next(changing), next(changing)
        processes.kill(killed)
        assert processes.terminate(stopped) == 0
        processes.start(killed, stopped)
    ledgers.wait_for_results(jobs, 240)
    ledgers.assert_each_exactly_once(jobs)
    assert {processes.terminate(name) for name in names} == {0}


@pytest.fixture
def forgetful(
    monkeypatch: pytest.MonkeyPatch, make_fleet: Callable[[str], KafkaSettings], clean_processes: None
) -> Iterator[Ledgers]:
    """A fleet on a broker that forgets transactional ids and producer ids within seconds, not after days."""
    for name in ("transactional.id.expiration.ms", "producer.id.expiration.ms"):
        monkeypatch.setitem(cluster.SERVER_PROPERTIES, name, "3000")
    monkeypatch.setitem(cluster.SERVER_PROPERTIES, "transaction.remove.expired.transaction.cleanup.interval.ms", "1000")
    monkeypatch.setitem(cluster.SERVER_PROPERTIES, "producer.id.expiration.check.interval.ms", "1000")
    with Broker.start() as broker:
        yield Ledgers(make_fleet(broker.bootstrap_servers))


def test_a_worker_that_kafka_has_forgotten_while_it_was_idle_goes_on(forgetful: Ledgers, tmp_path: Path) -> None:
    processes = StageProcesses(forgetful.kafka, tmp_path)
    try:
        processes.start("a")
        jobs = 0
        for _ in range(2):
            jobs += forgetful.submit({"id": jobs + number, "ms": 1} for number in range(40))
            forgetful.wait_for_results(jobs, 120)
            time.sleep(10)  # the broker forgets a worker that is idle for 3 s
        assert "INVALID_PRODUCER_ID_MAPPING" in processes.log("a"), "it was not forgotten"
        forgetful.assert_each_exactly_once(jobs)
        assert processes.terminate("a") == 0
    finally:
        processes.end()
