"""FastStream on confluent-kafka: batches of at most 100 jobs whose callbacks are sent at once, as its guides advise.

`max_workers`, its other way to handle jobs at once, commits an offset before the work; a batch's offset is committed
after the work, and NACK_ON_ERROR repeats a batch that failed. One process a core by `--workers`.
"""

from __future__ import annotations

import asyncio
import json
import os

import httpx
from callback import signed, submit
from confluent_kafka import Producer
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker

SERVERS, TOPIC = os.environ["KAFKA_SERVERS"], os.environ["TOPIC"]

broker = KafkaBroker(SERVERS)
app = FastStream(broker)
client = httpx.AsyncClient(limits=httpx.Limits(max_connections=100))


@broker.subscriber(
    TOPIC,
    group_id=TOPIC,
    auto_offset_reset="earliest",
    session_timeout_ms=6_000,
    fetch_max_wait_ms=10,
    polling_interval=0.01,
    ack_policy=AckPolicy.NACK_ON_ERROR,
    batch=True,
    max_records=100,
)
async def answer(jobs: list[dict[str, str]]) -> None:
    """Answer one batch."""

    async def call(job: dict[str, str]) -> None:
        url, body, headers = signed(job)
        (await client.post(url, content=body, headers=headers)).raise_for_status()

    await asyncio.gather(*map(call, jobs))


def put_all() -> None:
    """Submit by one producer."""
    producer = Producer({"bootstrap.servers": SERVERS, "linger.ms": 0})

    def put(job: dict[str, str]) -> None:
        producer.produce(TOPIC, json.dumps(job), headers={"content-type": "application/json"})
        producer.poll(0)

    submit(put)
    producer.flush()


if __name__ == "__main__":
    put_all()
