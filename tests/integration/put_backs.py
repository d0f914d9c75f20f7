"""Records that `dead-letters redrive` and `replay` can put back, and those that they have put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from confluent_kafka import Message, Producer

from bench.committed import committed_records
from producers.scan import Scanner
from schemas.settings import KafkaSettings
from tests.messages import key_of

REDRIVES = ("dead-letters", "redrive")
REPLAYS = ("replay", "--tenant", "acme")


def fill(
    fleet: KafkaSettings, sizes: Mapping[int, int], *, letters: bool, tenants: tuple[str, ...] = ("acme",)
) -> list[str]:
    """Write callbacks that were given up, or results, and return their jobs; `sizes` has their number by partition."""
    topic = fleet.topics.dead_letters if letters else fleet.topics.results
    producer, jobs = Producer({**fleet.client_config(), "linger.ms": 20}), list[str]()
    for partition, size in sizes.items():
        for number in range(size):
            job, tenant = f"job_{partition}_{number}", tenants[number % len(tenants)]
            headers = {"tenant": tenant, "webhook-id": f"msg_{job}", "job-id": job}
            headers |= {"callback-url": "https://hooks.example/in"}
            if letters:
                headers |= {"reason": "callback_exhausted", "source-topic": fleet.topics.results}
                headers |= {"source-partition": "0", "source-offset": str(number)}
            producer.produce(topic, b"{}", job, partition, headers=list(headers.items()))
            jobs.append(job)
    assert producer.flush(30) == 0
    return jobs


def due(fleet: KafkaSettings) -> list[Message]:
    """Records that were put back, which are in the smallest tier."""
    with Scanner(fleet) as scanner:
        # Wait, because Kafka confirms a commit before every reader sees its records.
        scanner.wait_until_settled([fleet.topics.tier(0.3)])
    return committed_records(fleet.client_config(), fleet.topics.tier(0.3))


def called(fleet: KafkaSettings) -> Counter[str]:
    """Return how often each job was put back."""
    return Counter(key_of(message) for message in due(fleet))


def assert_each_once(fleet: KafkaSettings, count: int) -> None:
    assert (set(called(fleet).values()), called(fleet).total()) == ({1}, count)
