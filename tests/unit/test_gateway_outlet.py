"""The relay's outlet: the headers of jobs that it signs, and its sweeps after a failed transaction."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from gateway.accept.outbox import outbox_row
from gateway.accept.outlet import RecordOutlet
from schemas import topics as names
from schemas.settings import KafkaSettings
from schemas.trust import TrustSecrets
from telemetry.clock import SystemClock
from tests.unit.settle_rig import Client

FLEET = KafkaSettings()
REQUESTS, BULK, CONTROL = FLEET.topics.requests(), FLEET.topics.requests(bulk=True), FLEET.topics.control
TRUST = TrustSecrets((b"s" * 32,))
SIGNED = TRUST.signed("acme", "job_1", b"{}")
GIVEN = [(name, b"of the caller's own") for name in (names.TENANT, "x-own", names.JOB_ID, names.TENANT_SIGNATURE)]


class Reader:
    """The position's reader, of a Kafka that has no position yet."""

    group = "gateway-relay"

    def __init__(self, *_: Any) -> None:
        pass

    def at(self, position: int) -> list[TopicPartition]:
        return [TopicPartition(REQUESTS, 0, position)]

    def read(self) -> None:
        return None

    def group_metadata(self) -> None:
        return None

    def close(self) -> None:
        pass


class KeptClient(Client):
    """A client of topics with two partitions and three copies, which keeps the headers of its outputs.

    If `fails`, Kafka does not answer the commit.
    """

    copies = 3

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        known = (REQUESTS, BULK, CONTROL, FLEET.topics.batch_requests, FLEET.topics.events)
        self.sizes = {topic: [1, 1] for topic in known}
        self.headers: list[list[tuple[str, bytes]]] = []
        self.fails = False

    def produce(self, topic: str, value: bytes | None, key: bytes | None, *, partition: int, headers: Any) -> None:
        super().produce(topic, value, key, partition=partition, headers=headers)
        self.headers.append(headers)

    def commit_transaction(self, timeout: float) -> None:
        super().commit_transaction(timeout)
        if self.fails:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    @property
    def swept(self) -> set[str]:
        return {said.partition("[")[0] for said in self.asked if said.endswith(" sweep")}


class Opened:
    """An outlet and its clients, in the order of their making."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trust: TrustSecrets | None = None) -> None:
        monkeypatch.setattr("gateway.accept.outlet.PositionReader", Reader)
        self.clients: list[KeptClient] = []
        self.outlet = RecordOutlet(FLEET, "store", SystemClock(), trust, self._make)
        self.outlet.open()

    def _make(self, config: dict[str, Any]) -> Any:
        self.clients.append(KeptClient(config))
        return self.clients[-1]


def row(topic: str, shard: str | None = None) -> Any:
    return SimpleNamespace(number=1, **outbox_row(topic, b"job_1", b"{}", GIVEN, shard))


@pytest.mark.parametrize(
    ("trust", "shard", "headers"),
    [
        (TRUST, "acme", [("x-own", b"of the caller's own"), *SIGNED]),
        (TRUST, None, GIVEN),  # no job, so no tenant to sign
        (None, "acme", GIVEN),
    ],
)
def test_a_job_has_the_relays_signature_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
    trust: TrustSecrets | None,
    shard: str | None,
    headers: list[tuple[str, bytes]],
) -> None:
    """A client that reads the first header of a name would otherwise believe the caller."""
    opened = Opened(monkeypatch, trust)
    opened.outlet.put([row(REQUESTS, shard)], 2)
    assert opened.clients[-1].headers == [headers]
    opened.outlet.close()


def test_records_and_the_position_after_them_are_in_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    [client] = opened.clients
    client.asked.clear()
    opened.outlet.put([row(CONTROL)], 8)
    [produced] = [said for said in client.asked if said.endswith(" output")]
    assert client.asked == ["begin", produced, f"offsets {REQUESTS}[0]@8", "commit"]
    opened.outlet.close()


def test_the_topics_of_a_failed_transaction_are_swept_once_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed transaction's records have no marker, and would hold up the topic's readers."""
    opened = Opened(monkeypatch)
    opened.clients[-1].fails = True
    with pytest.raises(KafkaException):
        opened.outlet.put([row(CONTROL), row(BULK, "acme")], 2)
    opened.outlet.open()
    opened.outlet.put([row(REQUESTS, "acme")], 2)
    opened.outlet.open()
    assert [client.swept for client in opened.clients] == [set(), {CONTROL, BULK}, set()]
    opened.outlet.close()
