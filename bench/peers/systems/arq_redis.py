"""arq with Redis: repeats a killed worker's jobs when their mark ends, ten seconds after the job's timeout.

100 jobs at once, no result kept, polling every 10 ms; a timeout of 5 s, so that a killed worker's jobs come after 15 s.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any, ClassVar

import httpx
from arq import create_pool
from arq.connections import RedisSettings
from callback import job_of, signed


async def answer(context: dict[str, Any], job: dict[str, str]) -> None:
    """Answer one job."""
    url, body, headers = signed(job)
    (await context["client"].post(url, content=body, headers=headers)).raise_for_status()


async def started(context: dict[str, Any]) -> None:
    """Open one client for all jobs of the worker."""
    context["client"] = httpx.AsyncClient()


class WorkerSettings:
    """The settings of the worker that arq's command starts."""

    functions: ClassVar[list[Any]] = [answer]
    on_startup = started
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    max_jobs = 100
    keep_result = 0
    poll_delay = 0.01
    job_timeout = 5
    max_tries = 10


async def main() -> None:
    """Put the jobs; arq's client is asynchronous, so `callback.submit` cannot."""
    pool = await create_pool(WorkerSettings.redis_settings)
    jobs, rate, start = int(sys.argv[-2]), float(sys.argv[-1]), time.monotonic()
    for number in range(jobs):
        due = start + number / rate if rate else time.monotonic()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await pool.enqueue_job("answer", job_of(number, due))


if __name__ == "__main__":
    asyncio.run(main())
