"""Compares the clocks of this machine and of the workers with the brokers' clocks.

Brokers set the records' timestamps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka import KafkaProducer

from operators.doctor.findings import Finding, fault, warning
from producers.connection import abandon, connect, kafka_errors_translated, needed, partition_counts
from producers.scan import Scanner
from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, InvalidAnnouncement, read_announcement
from telemetry.clock import Clock, SystemClock

WARN_SECONDS = 2.0
"""A difference from this size on gives a warning. Deadlines and times to live are whole seconds, so a smaller
difference has no effect."""
FAULT_SECONDS = 30.0
_SENT_SECONDS = 10.0
_KEY = b" doctor"
"""The key of the record that asks for the broker's time. The key has a space, so it is no worker's name."""
_FIX = "let NTP set the clock: `timedatectl set-ntp true`, then look at `timedatectl`"
_CLOCK = SystemClock()


def check_clock(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding if this machine's clock differs from the broker's clock.

    Raises ProducerError. To learn the broker's time, the check writes a record to `fleet_workers`. The record is a
    tombstone, which every reader skips and compaction removes.
    """
    topic = settings.topics.workers
    partition_counts(settings, [topic])
    with needed("a record there shows the broker's time (Write)"):
        producer: Any = connect(KafkaProducer, settings, acks="all", allow_auto_create_topics=False)
        try:
            with kafka_errors_translated(settings):
                before = clock.time()
                stamped = producer.send(topic, value=None, key=_KEY, partition=0).get(timeout=_SENT_SECONDS)
                after = clock.time()
        finally:
            abandon(producer)
    broker = stamped.timestamp / 1000
    # The broker set the record's timestamp between `before` and `after`.
    ahead = before - broker if before > broker else min(0.0, after - broker)
    yield from skew_findings("this machine's clock", ahead)


def check_worker_clocks(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding if live workers' clocks differ from the brokers' clocks.

    Workers state their time in their announcements. Raises ProducerError.
    """
    ahead: dict[str, float] = {}
    since_ms = int((clock.time() - LIVE_SECONDS) * 1000)
    with Scanner(settings, clock) as scanner:
        for record in scanner.read(scanner.ranges(settings.topics.workers, since_ms)):
            try:
                said = read_announcement(record.key, record.value or b"")
            except InvalidAnnouncement:
                continue
            ahead[said.replica] = (said.at - record.at_ms) / 1000
    for replica, seconds in sorted(ahead.items()):
        # An announcement may wait 30 s for a broker, and then the worker's clock seems slow. So only a fast clock is
        # certain.
        if seconds > 0 or seconds < -2 * FAULT_SECONDS:
            yield from skew_findings(f"the clock of worker {replica}", seconds)


def skew_findings(whose: str, ahead: float) -> Iterator[Finding]:
    """Yield the finding of a clock that is `ahead` seconds ahead of the broker's; a negative `ahead` means behind."""
    if abs(ahead) <= WARN_SECONDS:
        return
    side = "ahead of" if ahead > 0 else "behind"
    weigh = fault if abs(ahead) > FAULT_SECONDS else warning
    yield weigh(f"{whose} is {abs(ahead):.0f} s {side} the broker's: deadlines and signatures are judged wrongly", _FIX)
