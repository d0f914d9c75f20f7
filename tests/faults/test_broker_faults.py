"""The broker freezes, dies and comes back under load: nothing is lost and nothing is answered twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_fleet import Ledgers, StageProcesses

from devkit.broker import Broker
from schemas.settings import KafkaSettings

JOBS = 4_000


@pytest.fixture
def own_broker(clean_processes: None) -> Iterator[Broker]:
    with Broker.start() as broker:
        yield broker


@pytest.fixture
def own_ledgers(own_broker: Broker, make_fleet: Callable[[str], KafkaSettings]) -> Ledgers:
    return Ledgers(make_fleet(own_broker.bootstrap_servers))


@pytest.fixture
def own_processes(own_ledgers: Ledgers, tmp_path: Path) -> Iterator[StageProcesses]:
    started = StageProcesses(own_ledgers.kafka, tmp_path, window=60)
    yield started
    started.end()


def test_a_broker_that_freezes_and_one_that_is_killed_lose_nothing(
    own_broker: Broker, own_ledgers: Ledgers, own_processes: StageProcesses
) -> None:
    own_ledgers.submit({"id": number, "ms": 50 + number % 400} for number in range(JOBS))
    own_processes.start("a", "b")
    time.sleep(5)
    own_broker.pause()
    time.sleep(8)
    own_broker.resume()
    time.sleep(4)
    own_broker.kill()
    time.sleep(2)
    own_broker.restart()
    own_ledgers.wait_for_results(JOBS, 90)
    own_ledgers.assert_each_exactly_once(JOBS)
    assert own_processes.terminate("a") == 0
    assert own_processes.terminate("b") == 0
