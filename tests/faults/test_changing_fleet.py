"""Kafka forgets an idle producer. Other changes around running workers: `tests/simulation`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.devkit.broker import Broker
from cli.devkit.kafka import cluster
from schemas.settings import KafkaSettings
from tests.faults.kernel_fleet import Ledgers, StageProcesses

pytestmark = pytest.mark.timeout(900)


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
        for idle_seconds in (0, 10):  # the broker forgets a worker that is idle for 3 s
            time.sleep(idle_seconds)
            jobs += forgetful.submit({"id": jobs + number, "ms": 1} for number in range(40))
            forgetful.wait_for_results(jobs, 120)
        assert "INVALID_PRODUCER_ID_MAPPING" in processes.log("a"), "it was not forgotten"
        forgetful.assert_each_exactly_once(jobs)
        assert processes.terminate("a") == 0
    finally:
        processes.end()
