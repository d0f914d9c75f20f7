"""Times the callbacks of an endpoint that is away for a minute; part of `python -m bench.delivery`.

A real `postback deliver` finds a thousand results for an endpoint whose port refuses connections. After a minute the
endpoint listens again, on the same port.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from confluent_kafka import Producer

from bench.callbacks import CLOCK, headers, result, webhook_id
from bench.committed import committed_records
from bench.fleet import Command, Kafka, new_fleet, wait_for
from bench.receivers import receivers
from bench.result import verdict
from cli.devkit.kafka.cluster import free_ports
from schemas.topics import WEBHOOK_ID
from workers.delivery.keyring import Keyring

CALLBACKS = 1_000
AWAY_SECONDS = 60.0
LATE_SECONDS, MOST_WRITES = 30.0, 5
PARTITIONS = 4


def measure(used: Kafka) -> None:
    """Run once; print how late the last callback is after the endpoint's return, and how often one was rewritten."""
    kafka = new_fleet(used, PARTITIONS)
    with ExitStack() as stack:
        [port] = free_ports(1)
        producer = Producer(kafka.client_config())
        for number in range(CALLBACKS):
            said: dict[str, str | bytes | None] = dict(headers(number, f"http://127.0.0.1:{port}/hook"))
            producer.produce(kafka.topics.results, result(number), partition=number % PARTITIONS, headers=said)
        producer.flush(60)
        keyring = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keyring.json"
        Keyring.create(keyring, CLOCK)
        own = {"POSTBACK_REPLICA": "d0", "POSTBACK_KEYRING": str(keyring)}
        process = stack.enter_context(Command(kafka, "deliver", **own))
        wait_for(lambda: process.sample()["postback_callbacks_total"] > 0, 60)
        time.sleep(AWAY_SECONDS)
        consumers = stack.enter_context(receivers(1, note=True, port=port))
        back = time.monotonic()
        arrived = consumers.first_arrivals([webhook_id(number) for number in range(CALLBACKS)], 600)
    late = sorted(at - back for at in arrived.values())
    written = Counter(
        dict(record.headers() or ())[WEBHOOK_ID]
        for tier in kafka.topics.tiers.values()
        for record in committed_records(kafka.client_config(), tier)
    )
    print(f"callbacks after the return: median {late[len(late) // 2]:.1f} s")
    verdict("last callback after the return", late[-1], LATE_SECONDS, at_least=False, unit=" s")
    verdict("most writes of a callback to tiers", max(written.values()), MOST_WRITES, at_least=False)
