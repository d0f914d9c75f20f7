"""Brokers freeze, die and come back, forget a producer, or get topics anew: nothing is lost or answered twice."""

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
from tests.product import PARTITIONS, Product, Role, eventually, running

JOBS = 4_000


@pytest.fixture
def brokers() -> int:
    return 1


@pytest.fixture
def own_broker(brokers: int, clean_processes: None) -> Iterator[Broker]:
    with Broker.start(brokers=brokers) as broker:
        yield broker


@pytest.fixture
def own_ledgers(own_broker: Broker, brokers: int, make_fleet: Callable[[str, int], KafkaSettings]) -> Ledgers:
    return Ledgers(make_fleet(own_broker.bootstrap_servers, brokers))


@pytest.fixture
def own_processes(own_ledgers: Ledgers, tmp_path: Path) -> Iterator[StageProcesses]:
    started = StageProcesses(own_ledgers.kafka, tmp_path, window=60)
    yield started
    started.end()


def test_the_only_broker_freezes_and_is_killed_and_nothing_is_lost(
    own_broker: Broker, own_ledgers: Ledgers, own_processes: StageProcesses
) -> None:
    own_ledgers.submit({"id": number, "ms": 50 + number % 400} for number in range(JOBS))
    own_processes.start("a", "b")
    own_ledgers.wait_for_results(JOBS // 10, 60)
    own_broker.pause()
    time.sleep(8)  # keeps the broker frozen for longer than the members' session timeout
    own_broker.resume()
    own_ledgers.wait_for_results(JOBS // 3, 90)
    own_broker.kill()
    time.sleep(2)
    own_broker.restart()
    own_ledgers.wait_for_results(JOBS, 120)
    undone = any("progress-undone" in own_processes.log(replica) for replica in ("a", "b"))
    if undone:
        own_ledgers.assert_none_is_lost(JOBS)
    else:
        own_ledgers.assert_each_exactly_once(JOBS)
    assert own_processes.terminate("a") == 0
    assert own_processes.terminate("b") == 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("brokers", [3])
def test_each_of_three_brokers_dies_in_turn_and_every_job_is_answered_while_it_is_away(
    own_broker: Broker, own_ledgers: Ledgers, own_processes: StageProcesses
) -> None:
    """Each death matters: every broker leads partitions, and coordinates the group or some transactions.

    Before the deaths, the first broker also freezes.
    """
    own_processes.start("a", "b")
    jobs = 0

    def every_job_is_answered(more: int) -> None:
        nonlocal jobs
        jobs += own_ledgers.submit({"id": number, "ms": 50 + number % 400} for number in range(jobs, jobs + more))
        own_ledgers.wait_for_results(jobs, 240)

    every_job_is_answered(200)
    own_broker.pause()
    every_job_is_answered(800)
    own_broker.resume()
    for index in range(3):
        every_job_is_answered(200)
        own_broker.kill(index)
        every_job_is_answered(800)
        own_broker.restart(index)
    own_ledgers.assert_each_exactly_once(jobs)
    assert own_processes.terminate("a") == 0
    assert own_processes.terminate("b") == 0


def test_transactions_left_open_by_dead_brokers_and_workers_delay_no_reader(
    own_broker: Broker, own_ledgers: Ledgers, own_processes: StageProcesses
) -> None:
    own_ledgers.submit({"id": number, "ms": 50 + number % 400} for number in range(JOBS))
    for answered in (800, 1_600):
        own_processes.start("a", "b")
        own_ledgers.wait_for_results(answered, 60)
        own_broker.kill()
        own_processes.kill("a")
        own_processes.kill("b")
        own_broker.restart()
    own_processes.start("a", "b")
    own_ledgers.wait_for_results(JOBS, 90)
    own_ledgers.assert_none_is_lost(JOBS)


# -- a topic without leaders: only workers that write to it are delayed --------------------------------------------

BROKERS = 3
FEW_JOBS = 40


@pytest.fixture
def three_brokers(clean_processes: None) -> Iterator[Broker]:
    with Broker.start(brokers=BROKERS) as broker:
        yield broker


@pytest.fixture
def own_product(
    three_brokers: Broker, make_fleet: Callable[[str, int], KafkaSettings], tmp_path: Path
) -> Iterator[Product]:
    with running(make_fleet(three_brokers.bootstrap_servers, BROKERS), tmp_path) as product:
        yield product


def lay_on_one_broker(kafka: KafkaSettings, topic: str, broker: int) -> None:
    """Recreate the topic with one copy of each partition, all on this broker."""
    admin, clock = AdminClient(kafka.client_config()), SystemClock()
    admin.delete_topics([topic])[topic].result(20)
    deadline = Deadline.after(clock, 30)
    while topic in admin.list_topics(timeout=20).topics:
        assert not deadline.passed
        clock.sleep(0.1)
    layout = [[broker]] * PARTITIONS
    admin.create_topics([NewTopic(topic, PARTITIONS, replica_assignment=layout)])[topic].result(20)


def is_led(kafka: KafkaSettings, topic: str) -> bool:
    partitions = AdminClient(kafka.client_config()).list_topics(topic, timeout=20).topics[topic].partitions
    return all(partition.leader >= 0 for partition in partitions.values())


def test_a_new_worker_answers_jobs_while_dead_letters_have_no_leader_and_writes_the_letter_once_they_have(
    three_brokers: Broker, own_product: Product
) -> None:
    product, letters = own_product, own_product.kafka.topics.dead_letters
    lay_on_one_broker(product.kafka, letters, BROKERS)
    three_brokers.kill(BROKERS - 1)
    eventually(lambda: not is_led(product.kafka, letters), 60, "the dead letters still have a leader")

    worker = product.worker("w1")
    product.submit({"job_id": f"job-{number}", "prompt": "x"} for number in range(FEW_JOBS))
    product.wait_for_results(FEW_JOBS, 90)
    eventually(lambda: worker.ready()[0], 60, lambda: f"the worker is not ready: {worker.ready()[1]}")
    assert not is_led(product.kafka, letters)

    product.put([b"{"])
    eventually(lambda: not worker.ready()[0], 60, "the worker is ready although it cannot settle a letter")
    three_brokers.restart(BROKERS - 1)
    product.wait_for_results(FEW_JOBS + 1, 90)
    assert [letter["reason"] for letter in product.dead_letters()] == ["rejected"]
    assert worker.terminate() == 0


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

JOBS_BEFORE = 200


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
    ledgers.submit({"id": number, "ms": 1} for number in range(60, 60 + JOBS_BEFORE))
    eventually(lambda: processes.running["a"].poll() is not None, 90, "the process of the old topic goes on")
    ledgers.commit(old)
    assert processes.keep_alive("a")
    ledgers.wait_for_results(60 + JOBS_BEFORE, 90)
    ledgers.assert_each_exactly_once(60 + JOBS_BEFORE)
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
            {"prompt": f"job {number}", "callback_url": fleet_here.callbacks.url} for number in range(JOBS_BEFORE)
        )
        eventually(lambda: are_called_back(jobs), 90, f"{jobs} jobs are not called back")

    answer(JOBS_BEFORE)
    fleet_here.wait_until_nothing_is_left()
    make_anew(fleet_here.kafka, fleet_here.kafka.topics.requests())
    make_anew(fleet_here.kafka, fleet_here.kafka.topics.results)
    answer(2 * JOBS_BEFORE)
    assert {"worker", "deliver"} <= set(ended)
    events = fleet_here.callbacks.events
    assert len({repeats[0].webhook_id for repeats in events.values()}) == len(events) == 2 * JOBS_BEFORE
    assert {len(repeats) for repeats in events.values()} == {1}
