"""The archive of Kafka's classes: brokers map it, and start without it where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.devkit.broker import Broker
from cli.devkit.class_archive import make_class_archive
from cli.devkit.kafka import cluster
from cli.devkit.kafka.jars import class_archive


def mapped_files(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_broker_maps_kafkas_classes_from_the_archive() -> None:
    make_class_archive()

    with Broker.start() as broker:
        assert str(class_archive()) in mapped_files(broker.pids[0])


def test_a_broker_starts_although_the_archive_is_of_another_java(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "classes.jsa"
    other.write_bytes(bytes(100_000))
    monkeypatch.setattr(cluster, "class_archive", lambda: other)

    with Broker.start() as broker:
        assert str(other) not in mapped_files(broker.pids[0])
