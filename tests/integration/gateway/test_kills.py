"""Processes, Kafka and the database are killed while work is accepted: nothing is lost, and nothing is doubled.

POSTBACK_TEST_KILLS raises the number of kills for a long run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from cli.devkit.broker import Broker
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from tests.integration.gateway.killing import CLOCK, Load, counted, torment
from tests.postgres_server import PostgresServer
from tests.product import PARTITIONS, eventually

KILLS = int(os.environ.get("POSTBACK_TEST_KILLS", "3"))
RESULTS = 2_000


@pytest.fixture
def own_broker(clean_processes: None) -> Iterator[Broker]:
    with Broker.start() as broker:
        yield broker


@pytest.fixture
def loads(tmp_path: Path, clean_processes: None) -> Iterator[Callable[[str, KafkaSettings], Load]]:
    """Makes a load with two processes; the test's end kills them."""
    made: list[Load] = []

    def make(url: str, kafka: KafkaSettings) -> Load:
        load = Load(url, kafka, tmp_path)
        made.append(load)
        load.start()
        load.start()
        return load

    yield make
    for load in made:
        load.end()


def put_results(kafka: KafkaSettings, numbers: range) -> None:
    """Write results of jobs that the gateway did not accept."""
    producer = Producer(kafka.client_config())
    for number in numbers:
        value = write_result(Result(job_id=f"r{number}", outcome=Outcome.SUCCEEDED, created_at=1))
        producer.produce(kafka.topics.results, value, partition=number % PARTITIONS)
    producer.flush(60)


def test_killed_and_stopped_gateways_lose_and_double_nothing(
    store_url: str, fleet: KafkaSettings, loads: Callable[[str, KafkaSettings], Load], show: Callable[[str], None]
) -> None:
    load = loads(store_url, fleet)
    load.ask(50)
    eventually(load.is_answered, 60, load.log)
    share = RESULTS // KILLS
    torment(load, KILLS, 150, lambda number: put_results(fleet, range(number * share, (number + 1) * share)))
    wanted = (KILLS * share, KILLS * share)
    eventually(lambda: counted(store_url) == wanted, 90, lambda: f"{counted(store_url)}: {load.log()}")
    load.finish(90)
    load.verify()
    assert counted(store_url) == wanted
    show(f"{len(load.answers)} accepted under {load.kills} SIGKILLs and {load.stops} stop, {wanted[0]} results counted")


def test_postgres_that_is_killed_under_load_loses_and_doubles_nothing(
    fleet: KafkaSettings, loads: Callable[[str, KafkaSettings], Load], show: Callable[[str], None]
) -> None:
    with PostgresServer() as server:
        load = loads(server.new_database(), fleet)
        load.ask(50)
        eventually(load.is_answered, 60, load.log)
        for _ in range(2):
            load.ask(300)
            CLOCK.sleep(0.1)
            server.kill()
            load.ask(50)
            server.start()
        load.finish(90)
        load.verify()
        show(f"{len(load.answers)} accepted while PostgreSQL was killed twice")


def test_kafka_that_is_killed_under_load_loses_and_doubles_nothing(
    own_broker: Broker,
    make_fleet: Callable[[str], KafkaSettings],
    loads: Callable[[str, KafkaSettings], Load],
    tmp_path: Path,
    show: Callable[[str], None],
) -> None:
    load = loads(f"sqlite:///{tmp_path / 'store.db'}", make_fleet(own_broker.bootstrap_servers))
    load.ask(50)
    eventually(load.is_answered, 60, load.log)
    load.ask(500)
    CLOCK.sleep(0.2)
    own_broker.kill()
    load.ask(200)
    eventually(load.is_answered, 60, "work is not accepted without Kafka")
    own_broker.restart()
    load.finish(120)
    load.verify()
    show(f"{len(load.answers)} accepted while Kafka was killed")
