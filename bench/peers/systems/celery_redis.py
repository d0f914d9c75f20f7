"""Celery with Redis: acks_late and reject_on_worker_lost, so that a killed worker's jobs come again.

Settings by its guide on optimizing: a prefetch of one for late acknowledgements, no result backend where no result is
read, one process a core. The visibility timeout, an hour by default, is 10 s here: later, a killed worker's jobs come.
"""

from __future__ import annotations

import os

import httpx
from callback import signed, submit
from celery import Celery

app = Celery("celery_redis", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    broker_transport_options={"visibility_timeout": 10},
)
client = httpx.Client()


@app.task(name="answer", max_retries=10, autoretry_for=(httpx.HTTPError,))
def answer(job: dict[str, str]) -> None:
    """Answer one job."""
    url, body, headers = signed(job)
    client.post(url, content=body, headers=headers).raise_for_status()


if __name__ == "__main__":
    submit(answer.delay)
