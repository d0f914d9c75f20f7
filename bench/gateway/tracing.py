"""Times `postback trace` in a store of many jobs, which direct inserts fill, without Kafka and workers."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection

from bench.fleet import POSTBACK
from bench.gateway.running import TENANT, Sizes, store_url
from bench.result import table, title, verdict
from gateway.store.dialects import insert, write_rows
from gateway.store.store import Store
from gateway.store.tables import job_attempts, jobs
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result

GOAL_SECONDS = 2.0
TOGETHER = 10_000
TENANTS = 100


def main(_servers: str | None, sizes: Sizes) -> None:
    """Fill a store, trace some jobs, and print the times."""
    title(f"postback trace in a store with {sizes.stored_jobs:,} jobs and as many callback attempts")
    with TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        _fill(store_url(folder), sizes.stored_jobs)
        print(f"filled by direct inserts in {time.monotonic() - began:.0f} s", flush=True)
        chosen = Random(7).sample(range(sizes.stored_jobs), sizes.traces)
        sides = (("with --tenant", True), ("without", False))
        found = {side: [_traced(folder, number, with_tenant=given) for number in chosen] for side, given in sides}
        size = (folder / "store.db").stat().st_size
    rows = [(side, f"{statistics.median(taken):.2f}", f"{max(taken):.2f}") for side, taken in found.items()]
    table(("postback trace", "median s", "at most s"), rows)
    print(f"{sizes.traces} jobs of {TENANTS} tenants each; the store has {size / 1e9:.2f} GB")
    verdict("seconds of a trace, at most", max(map(max, found.values())), GOAL_SECONDS, at_least=False, unit=" s")


def _fill(url: str, count: int) -> None:
    store = Store.open(url)
    for start in range(0, count, TOGETHER):
        numbers = range(start, min(start + TOGETHER, count))

        def change(connection: Connection, numbers: range = numbers) -> None:
            write_rows(connection, insert(connection, jobs), [_job(number) for number in numbers])
            write_rows(connection, insert(connection, job_attempts), [_attempt(number) for number in numbers])

        store.write_now(change)
    store.close()


def _job(number: int) -> dict[str, Any]:
    result = Result(job_id=f"job-{number}", outcome=Outcome.SUCCEEDED, text="x" * 300, created_at=number)
    return {
        "tenant": _tenant(number),
        "job_id": result.job_id,
        "url": "/v1/jobs",
        "status": "succeeded",
        "created_at": number,
        "finished_at": number,
        "metadata": {},
        "result": write_result(result),
    }


def _attempt(number: int) -> dict[str, Any]:
    return {
        "topic_partition": number % 12,
        "topic_offset": number // 12,
        "tenant": _tenant(number),
        "job_id": f"job-{number}",
        "webhook_id": f"msg_{number}",
        "at": number,
        "details": {"origin": "https://example.com", "status": 200, "attempt": 1},
    }


def _tenant(number: int) -> str:
    return f"{TENANT}{number % TENANTS}"


def _traced(folder: Path, number: int, *, with_tenant: bool) -> float:
    """Return the seconds of one command, which has to find the job and its attempt."""
    tenant = ("--tenant", _tenant(number)) if with_tenant else ()
    began = time.monotonic()
    done = subprocess.run(
        [str(POSTBACK), "trace", f"job-{number}", "--store", store_url(folder), *tenant],
        capture_output=True,
        check=True,
        text=True,
    )
    seconds = time.monotonic() - began
    if f"job-{number}, tenant {_tenant(number)}" not in done.stdout or "https://example.com" not in done.stdout:
        raise RuntimeError(f"the trace lacks the job or its attempt:\n{done.stdout}")
    return seconds
