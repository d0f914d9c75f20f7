"""A user's own loop: confluent-kafka, httpx and hmac, with offsets committed after a batch has been called back.

Batches of at most 100 jobs whose callbacks are sent at once, over kept connections; at least once.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import httpx
from callback import signed, submit
from confluent_kafka import Consumer, Producer

SERVERS, TOPIC = os.environ["KAFKA_SERVERS"], os.environ["TOPIC"]


async def main() -> None:
    """Answer jobs until the process ends."""
    settings = {"auto.offset.reset": "earliest", "enable.auto.commit": False, "session.timeout.ms": 6_000}
    consumer = Consumer({"bootstrap.servers": SERVERS, "group.id": TOPIC, "fetch.wait.max.ms": 10, **settings})
    consumer.subscribe([TOPIC])
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=100)) as client:

        async def answer(job: dict[str, str]) -> None:
            url, body, headers = signed(job)
            (await client.post(url, content=body, headers=headers)).raise_for_status()

        while True:
            messages = [message for message in consumer.consume(100, 0.01) if message.error() is None]
            await asyncio.gather(*(answer(json.loads(message.value())) for message in messages))
            if messages:
                consumer.commit(asynchronous=False)


def put_all() -> None:
    """Submit by one producer."""
    producer = Producer({"bootstrap.servers": SERVERS, "linger.ms": 0})

    def put(job: dict[str, str]) -> None:
        producer.produce(TOPIC, json.dumps(job))
        producer.poll(0)

    submit(put)
    producer.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        put_all()
    else:
        asyncio.run(main())
