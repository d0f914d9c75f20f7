"""Brokers freeze, die and come back under load: nothing is lost, nothing stands still, nothing is answered twice.

With a single broker, Kafka itself may break these promises. If a partition's only replica is down when a transaction
ends, Kafka 4.3.1 ends the transaction without a marker there. A confirmed transaction may then be undone in one
partition and kept in another. The kernel detects and logs the undone records, and repeats their work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from cli.devkit.broker import Broker
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.product import PARTITIONS, Product, eventually, running

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
