"""Kafka forgets an idle producer, and topics are made anew. Other changes around workers: `tests/simulation`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from cli.devkit.broker import Broker
from cli.devkit.kafka import cluster
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.fleet_here import FleetHere
from tests.product import PARTITIONS, Role, eventually


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


@pytest.mark.timeout(900)
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


# -- topics made anew ----------------------------------------------------------------------------------------------

JOBS = 200


def make_anew(kafka: KafkaSettings, topic: str) -> None:
    """Delete a topic and recreate it as soon as Kafka allows that."""
    admin, deadline = AdminClient(kafka.client_config()), Deadline.after(SystemClock(), 30)
    admin.delete_topics([topic])[topic].result(20)
    while True:
        try:
            admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(20)
            return
        except KafkaException:  # the old topic is still being deleted
            if deadline.passed:
                raise
            deadline.clock.sleep(0.05)


def test_each_new_job_is_answered_once_however_long_the_old_partitions_were(
    fleet: KafkaSettings, ledgers: Ledgers, processes: StageProcesses
) -> None:
    """Before the change, two partitions have fewer records than after it, and two have none.

    Kafka deletes a topic's offsets with the topic. A process that commits after that puts the old progress back, as
    this test does between the end of one process and the start of the next.
    """
    ledgers.submit(({"id": number, "ms": 1} for number in range(60)), partitions=2)
    processes.start("a")
    ledgers.wait_for_results(60, 60)
    eventually(lambda: ledgers.lag() == 0, 60, "the progress of the old topic is not committed")
    old = ledgers.progress()

    make_anew(fleet, fleet.topics.requests())
    ledgers.submit({"id": number, "ms": 1} for number in range(60, 60 + JOBS))
    eventually(lambda: processes.running["a"].poll() is not None, 90, "the process of the old topic goes on")
    ledgers.commit(old)
    assert processes.keep_alive("a")
    ledgers.wait_for_results(60 + JOBS, 90)
    ledgers.assert_each_exactly_once(60 + JOBS)
    log = processes.log("a")
    assert ('"topic-replaced"' in log, '"topic-made-anew"' in log) == (True, True)
    assert processes.terminate("a") == 0


def test_new_jobs_and_results_are_answered_and_called_back_under_identities_of_their_own(fleet_here: FleetHere) -> None:
    fleet_here.callbacks.up()
    roles: dict[str, Role] = {"worker": fleet_here.worker("w1"), "deliver": fleet_here.deliver("d1")}
    start: dict[str, Callable[[], Role]] = {
        "worker": lambda: fleet_here.worker("w1"),
        "deliver": lambda: fleet_here.deliver("d1"),
    }
    ended: list[str] = []

    def are_called_back(jobs: int) -> bool:
        for name, role in roles.items():
            if (status := role.ended()) is not None:
                assert (status, "was deleted and created again" in role.said()) == (1, True), role.said()
                ended.append(name)
                roles[name] = start[name]()
        return len(fleet_here.callbacks.events) >= jobs

    def answer(jobs: int) -> None:
        fleet_here.submit(
            {"prompt": f"job {number}", "callback_url": fleet_here.callbacks.url} for number in range(JOBS)
        )
        eventually(lambda: are_called_back(jobs), 90, f"{jobs} jobs are not called back")

    answer(JOBS)
    fleet_here.wait_until_nothing_is_left()
    make_anew(fleet_here.kafka, fleet_here.kafka.topics.requests())
    make_anew(fleet_here.kafka, fleet_here.kafka.topics.results)
    answer(2 * JOBS)
    assert {"worker", "deliver"} <= set(ended)
    events = fleet_here.callbacks.events
    assert len({repeats[0].webhook_id for repeats in events.values()}) == len(events) == 2 * JOBS
    assert {len(repeats) for repeats in events.values()} == {1}
