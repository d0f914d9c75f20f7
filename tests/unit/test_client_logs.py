"""librdkafka's lines about an unreachable broker appear in the log without filling it."""

from __future__ import annotations

import logging
import socket

import pytest
from confluent_kafka import Producer

from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from telemetry.hand_clock import HandClock
from workers.kafka.clients import REPEAT_SECONDS, RepeatFilter, client_config

REFUSED = "127.0.0.1:9092/1: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 3ms in state CONNECT)"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def repeats(clock: HandClock) -> RepeatFilter:
    return RepeatFilter(clock)


def line(text: str, client: str = "rdkafka#producer-1", what: str = "FAIL") -> logging.LogRecord:
    return logging.LogRecord("librdkafka", logging.ERROR, "", 0, "%s [%s] %s", (what, client, text), None)


def passed(repeats: RepeatFilter, record: logging.LogRecord) -> str | None:
    return record.getMessage() if repeats.filter(record) else None


def test_one_line_of_a_kind_passes_and_the_next_one_counts_those_between(
    repeats: RepeatFilter, clock: HandClock
) -> None:
    text = f"[thrd:127.0.0.1:9092/1]: {REFUSED}"
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text}"
    for number in range(600):
        clock.sleep(REPEAT_SECONDS / 601)
        assert passed(repeats, line(text.replace("3ms", f"{number}ms"), f"rdkafka#producer-{number}")) is None
    clock.sleep(1)
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text} (and 600 more like it before)"
    clock.sleep(REPEAT_SECONDS)
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text}"


def test_another_broker_and_another_trouble_are_of_another_kind(repeats: RepeatFilter) -> None:
    texts = [
        f"[thrd:127.0.0.1:9092/1]: {REFUSED}",
        f"[thrd:127.0.0.1:9093/2]: {REFUSED}",
        "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: SASL authentication error: the password is wrong",
    ]
    assert None not in [passed(repeats, line(text)) for text in texts]
    assert passed(repeats, line(texts[0], what="SESSTMOUT")) is not None


def test_clients_that_come_and_go_report_an_absent_broker_once(caplog: pytest.LogCaptureFixture) -> None:
    """Real clients run here, so the test sees the lines that librdkafka really passes to the logger."""
    with socket.socket() as nobody, caplog.at_level(logging.INFO, "librdkafka"):
        nobody.bind(("127.0.0.1", 0))  # the port is bound but not listening, so connections are refused
        config = client_config(KafkaSettings(bootstrap_servers=f"127.0.0.1:{nobody.getsockname()[1]}"))
        for _ in range(5):
            producer = Producer({**config, "reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 10})
            deadline = Deadline.after(SystemClock(), 0.3)
            while not deadline.passed:
                producer.poll(0.05)
    said = [record.getMessage() for record in caplog.records if "Connection refused" in record.getMessage()]
    assert len(said) == 1, said
