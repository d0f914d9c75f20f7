"""Kafka's messages: their fields, for comparisons, where a missing field fails the test; and results to deliver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from confluent_kafka import Message, Producer

from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings

Pairs = Iterable[tuple[str, bytes | None]]


def headers_of(message: Message) -> dict[str, bytes]:
    """A message's headers by name, each with a value; of headers with the same name, the last counts."""
    return _present(pairs_of(message))


def pairs_of(message: Message) -> list[tuple[str, bytes | None]]:
    """A message's headers in their order. A consumer gives each value as bytes, or as None."""
    pairs = message.headers() or []
    assert isinstance(pairs, list)
    return [(name, _bytes_or_none(value)) for name, value in pairs]


def in_text(headers: Pairs | None) -> dict[str, str]:
    """Headers by name, with values decoded as UTF-8."""
    return {name: value.decode() for name, value in _present(headers or ()).items()}


def key_of(message: Message) -> str:
    """A message's key as text."""
    key = message.key()
    assert key is not None, "the message has no key"
    return key.decode()


def value_of(message: Message) -> bytes:
    """A message's value."""
    value = message.value()
    assert value is not None, "the message has no value"
    return value


def _present(headers: Pairs) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, value in headers:
        assert value is not None, f"the header {name} has no value"
        found[name] = value
    return found


def _bytes_or_none(value: str | bytes | None) -> bytes | None:
    assert not isinstance(value, str)
    return value


def put_results(kafka: KafkaSettings, urls: Mapping[str, str], tenant: str | None = "default") -> None:
    """Write one result for each job id, with its callback URL, in turn over the partitions.

    If `tenant` is None, each job is of its own tenant: an origin's Retry-After also delays the tenant's other events.
    """
    producer = Producer(kafka.client_config())
    for count, (job_id, url) in enumerate(urls.items()):
        result = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
        headers = {"tenant": tenant or job_id, "webhook-id": f"msg_{job_id}", "job-id": job_id, "callback-url": url}
        place = kafka.topics.results, write_result(result), job_id, count % kafka.partitions
        producer.produce(*place, headers=list(headers.items()))
    assert producer.flush(20) == 0
