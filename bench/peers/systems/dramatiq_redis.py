"""Dramatiq with Redis: acknowledges after the work and repeats failed jobs by default.

One process a core with its default of eight threads. The heartbeat timeout, a minute by default, is 10 s here: so long
a killed worker's jobs wait.
"""

from __future__ import annotations

import os

import dramatiq
import httpx
from callback import signed, submit
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"], heartbeat_timeout=10_000))
client = httpx.Client()


@dramatiq.actor
def answer(job: dict[str, str]) -> None:
    """Answer one job."""
    url, body, headers = signed(job)
    client.post(url, content=body, headers=headers).raise_for_status()


if __name__ == "__main__":
    submit(answer.send)
