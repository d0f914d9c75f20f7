"""A delivery process is killed while one endpoint hangs: its successor delivers to all others without waiting."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka import Producer

from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from tests.product import PARTITIONS, Product, eventually

pytestmark = pytest.mark.broker

FIRST, FOUND = PARTITIONS, 492
HUNG_ONE_IN = 41
"""One in 41 of the FOUND events hangs: twelve events, and sixteen together with the four FIRST events.

In an earlier version, suspects ran in groups of 32, and each group waited for its hung events.
"""


@pytest.fixture
def hung() -> Iterator[str]:
    """A URL whose server accepts connections and requests, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"


def put_results(product: Product, names: Sequence[str], urls: Sequence[str]) -> None:
    producer = Producer(product.kafka.client_config())
    for count, (name, url) in enumerate(zip(names, urls, strict=True)):
        result = Result(job_id=name, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
        headers = {"webhook-id": f"msg_{name}", "job-id": name, "callback-url": url}
        place = product.kafka.topics.results, write_result(result), name, count % PARTITIONS
        producer.produce(*place, headers=list(headers.items()))
    assert producer.flush(20) == 0


def test_healthy_endpoints_get_their_callbacks_before_the_first_attempt_at_the_hung_one_has_ended(
    product: Product, hung: str
) -> None:
    product.callbacks.up()
    killed = product.deliver("d1")
    put_results(product, [f"first-{number}" for number in range(FIRST)], [hung] * FIRST)
    eventually(lambda: killed.metrics()["postback_in_flight"] == FIRST, 60, "not all is tried")
    killed.kill()

    names = [f"found-{number}" for number in range(FOUND)]
    urls = [hung if number % HUNG_ONE_IN == 0 else product.callbacks.url for number in range(FOUND)]
    put_results(product, names, urls)
    # This is the longest deadline that the setting allows.
    restarted = product.deliver("d1")
    healthy = {name for name, url in zip(names, urls, strict=True) if url != hung}
    eventually(lambda: len(product.callbacks.events) == len(healthy), 120, "a healthy endpoint waits")
    assert set(product.callbacks.events) == healthy
    eventually(lambda: len(product.attempts()) >= len(healthy), 30, "not all that was sent is settled")
    assert [attempt["error"] for attempt in product.attempts()] == [None] * len(healthy)
    assert "partition-left-open" in restarted.said()
