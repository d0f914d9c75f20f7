"""A process that accepts jobs, relays them and counts results, for tests that kill it. Takes settings as JSON.

Each line of standard input is a key. The process accepts one job for the key, and answers with a line: the key and the
id of its job, or the key alone if the job was not accepted.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from sqlalchemy import Connection

from gateway.accept.acceptance import Acceptance
from gateway.accept.idempotency import StoredAnswer
from gateway.accept.jobs import JobsRequest, NewJob
from gateway.accept.relay import Relay
from gateway.access import Principal
from gateway.access.principal import DEFAULT_SCOPES
from gateway.store.meta import set_value, value_of
from gateway.store.settings import StoreSettings
from gateway.store.store import Store, StoreAway
from gateway.view.records import ResultRecord
from gateway.view.view import TopicView
from gateway.view.waiting import Waiting
from schemas.settings import KafkaSettings
from telemetry import logs
from telemetry.clock import Clock, SystemClock
from telemetry.metrics import Metrics
from workers.system.side_task import SideTask

PRINCIPAL = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)
COUNT = "counted-results"


def count(connection: Connection, results: Sequence[ResultRecord]) -> None:
    """Add the first results of jobs to a count in the store, as the view counts the results of batches."""
    firsts = sum(each.first for each in results)
    set_value(connection, COUNT, str(int(value_of(connection, COUNT) or 0) + firsts))


class Acceptor:
    """Accepts a job for each key. The job names its key, and the monotonic time at which it was asked for."""

    def __init__(self, store: Store, kafka: KafkaSettings, clock: Clock) -> None:
        self._store = store
        self._kafka = kafka
        self._clock = clock
        self._lock = threading.Lock()

    def accept_all(self) -> None:
        """Accept until the end of the input. Keys that come faster than transactions share one."""
        for line in sys.stdin:
            key = line.strip()
            try:
                self._store.submit(self._request(key)).add_done_callback(partial(self._answer, key))
            except StoreAway:
                self._say(key)

    def _request(self, key: str) -> JobsRequest:
        job_id = f"job_{uuid.uuid4().hex}"
        value = json.dumps({"job_id": job_id, "key": key, "asked": self._clock.monotonic()}).encode()
        jobs, answer = [NewJob(job_id, "/v1/jobs", value)], StoredAnswer(202, job_id.encode())
        return JobsRequest(PRINCIPAL, key, b"", jobs, answer, self._kafka.topics, self._clock)

    def _answer(self, key: str, done: Future[StoredAnswer]) -> None:
        try:
            self._say(f"{key} {done.result().body.decode()}")
        except StoreAway:
            self._say(key)

    def _say(self, line: str) -> None:
        with self._lock:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


async def main(url: str, kafka: KafkaSettings) -> None:
    """Run until the input ends."""
    clock, store = SystemClock(), Store.open(url)
    acceptance = Acceptance(store, kafka, StoreSettings(url=url), clock, Metrics())
    relay = Relay(store, kafka, clock, Metrics())
    view = TopicView(store, kafka, (count,), Waiting(clock), clock, Metrics())
    parts: tuple[SideTask, ...] = (acceptance, relay, view)
    tasks = [asyncio.create_task(part.ended()) for part in parts]
    reading = asyncio.create_task(asyncio.to_thread(Acceptor(store, kafka, clock).accept_all))
    await asyncio.wait([reading, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    store.close()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    logs.configure("gateway")
    asyncio.run(main(given["url"], KafkaSettings.model_validate(given["kafka"])))
