"""A new fleet of kernel processes for each fault test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.settings import KafkaSettings
from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.faults.link import Link


@pytest.fixture
def ledgers(fleet: KafkaSettings) -> Ledgers:
    return Ledgers(fleet)


@pytest.fixture
def processes(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[StageProcesses]:
    started = StageProcesses(fleet, tmp_path)
    yield started
    started.end()


@pytest.fixture
def link(ledgers: Ledgers) -> Iterator[Link]:
    with Link(int(ledgers.kafka.bootstrap_servers.rsplit(":", 1)[1])) as link:
        yield link
