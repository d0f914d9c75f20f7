"""Batches in the test's process: clerk and expansion over a real store, with results written by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row, select

from gateway.accept.outbox import unpacked
from gateway.access.tenant_settings import TenantSettings
from gateway.batches.clerk import Clerk
from gateway.batches.expansion import ExpansionHandler
from gateway.store.tables import batches, outbox
from gateway.view.records import ResultRecord
from gateway.view.stored_jobs import line_of
from gateway.view.writing import write_results
from schemas.codec import Origin, ReceivedJob, read_job, read_result, write_result
from schemas.outcome import Outcome
from schemas.result import Result, Usage
from schemas.topics import JOB_ID, TENANT, Topics
from telemetry.metrics import Metrics
from tests.unit.gateway_rig import Rig, gateway_rig
from workers.stage.record import Output, Record

ByLine = Callable[[int], Outcome]
TOPICS = Topics()
UNLIMITED = TenantSettings()
CHAT = "/v1/chat/completions"


def line(number: int, **changes: Any) -> dict[str, Any]:
    """A usable line; `changes` replace its members."""
    body = {"model": "echo", "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": CHAT, "body": body, **changes}


def lines(count: int) -> bytes:
    return jsonl(line(number) for number in range(count))


def jsonl(documents: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


@dataclass
class BatchRig:
    """Requests about batches, and the steps that the processes of a fleet would take."""

    door: Rig
    key: str
    expansion: ExpansionHandler
    ended: list[str] = field(default_factory=list)
    """The statuses of the ended batches, as told to the clerk's hook."""
    records: int = 0

    async def upload(self, content: bytes, key: str | None = None) -> str:
        answer = await self.door.upload(content, key or self.key)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def post(self, file_id: str, key: str | None = None, **changes: Any) -> Any:
        """Ask for a batch; `changes` replace members of the body, and `headers` are the request's."""
        headers = changes.pop("headers", {})
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **changes}
        return await self.door.request("POST", "/v1/batches", key or self.key, json=body, headers=headers)

    async def create(self, content: bytes, **changes: Any) -> str:
        answer = await self.post(await self.upload(content), **changes)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def begun(self, content: bytes, **changes: Any) -> tuple[str, list[Output]]:
        """Create a batch, wait until it runs, and expand it; the clerk must be running."""
        batch_id = await self.create(content, **changes)
        await self.until(batch_id, "in_progress")
        return batch_id, await self.expand()

    async def completed(self, content: bytes) -> dict[str, Any]:
        """A batch all of whose lines have succeeded; the clerk must be running."""
        batch_id, made = await self.begun(content)
        self.answer(made)
        return await self.until(batch_id, "completed")

    async def batch(self, batch_id: str) -> dict[str, Any]:
        return dict((await self.door.request("GET", f"/v1/batches/{batch_id}", self.key)).json())

    async def cancel(self, batch_id: str) -> Any:
        return await self.door.request("POST", f"/v1/batches/{batch_id}/cancel", self.key)

    async def until(self, batch_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until the batch has one of these statuses; the clerk must be running."""
        for _ in range(3000):
            found = await self.batch(batch_id)
            if found["status"] in statuses:
                return found
            await asyncio.sleep(0.01)
        pytest.fail(f"the batch stays {found['status']}")

    @asynccontextmanager
    async def clerk(self, settings: TenantSettings = UNLIMITED) -> AsyncIterator[Clerk]:
        """A running clerk; each process of the door has one."""

        def on_ended(_connection: Connection, row: Row[Any]) -> None:
            self.ended.append(row.status)

        made = Clerk(self.door.shelf, TOPICS, lambda _: settings, on_ended)
        task = asyncio.create_task(made.ended())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    def requested(self) -> list[Record]:
        """The records of `batch_requests` in the outbox."""
        return [
            Record(TOPICS.batch_requests, 0, row.number, row.value, row.record_key, headers_of(row))
            for row in self.outbox(TOPICS.batch_requests)
        ]

    def outbox(self, topic: str) -> Sequence[Row[Any]]:
        statement = select(outbox).where(outbox.c.topic == topic).order_by(outbox.c.number)
        return self.door.store.read_now(lambda connection: connection.execute(statement).all())

    async def expand(self) -> list[Output]:
        """The expansion's outputs for all records of `batch_requests` so far."""
        return [output for record in self.requested() for output in await self.expansion.handle(record)]

    def answer(
        self, outputs: Iterable[Output], outcome: Callable[[int], Outcome] | Outcome = Outcome.SUCCEEDED
    ) -> None:
        """Store the results of jobs, with an outcome for each line, and the results that the expansion itself wrote."""
        self.store([_answer(output, outcome) for output in outputs if output.topic != TOPICS.dead_letters])

    def store(self, records: Sequence[ResultRecord]) -> None:
        """Write results as the view does."""
        self.door.store.write_now(lambda connection: write_results(connection, records))

    async def lines_of(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output file; an empty list if `file_id` is None."""
        if file_id is None:
            return []
        answer = await self.door.request("GET", f"/v1/files/{file_id}/content", self.key)
        assert answer.status_code == 200, answer.text
        return [json.loads(text) for text in answer.text.splitlines()]

    async def assert_complete(self, batch: Mapping[str, Any], total: int) -> tuple[list[Any], list[Any]]:
        """Assert that each line is in exactly one file, in order, and that the counts are those of the files."""
        done = await self.lines_of(batch["output_file_id"])
        failed = await self.lines_of(batch["error_file_id"])
        ids = [each["custom_id"] for each in (*done, *failed)]
        assert sorted(ids) == sorted(f"row-{number}" for number in range(total))
        for some in (done, failed):
            numbers = [int(each["custom_id"].removeprefix("row-")) for each in some]
            assert numbers == sorted(numbers)
        assert batch["request_counts"] == {"total": total, "completed": len(done), "failed": len(failed)}
        assert all(each["response"]["status_code"] == 200 and each["error"] is None for each in done)
        return done, failed


async def twelve(topic: str) -> int:
    """The number of partitions of each topic."""
    return 12


@asynccontextmanager
async def batch_rig(folder: Path, store_url: str | None = None, **settings: Any) -> AsyncIterator[BatchRig]:
    """Yield a rig with a new store, on SQLite unless a URL is given."""
    with gateway_rig(folder, store_url=store_url, **settings) as door:
        expansion = ExpansionHandler(TOPICS, door.shelf, twelve, door.clock, Metrics())
        yield BatchRig(door, door.key(), expansion)


def job_of(output: Output) -> ReceivedJob:
    """The job in an output, as a worker reads it."""
    return read_job(output.value, output.headers, Origin("topic", 0, 0), 1_800_000_000_000)


def headers_of(row: Row[Any]) -> list[tuple[str, bytes | None]]:
    return list(unpacked(row.headers))


def _answer(output: Output, outcome: ByLine | Outcome) -> ResultRecord:
    headers = dict(output.headers or ())
    tenant, job_id = ((headers[name] or b"").decode() for name in (TENANT, JOB_ID))
    if output.topic == TOPICS.results:
        return result_record(read_result(output.value), tenant)
    place = line_of(job_id)
    assert place is not None
    chosen = outcome if isinstance(outcome, Outcome) else outcome(place[1])
    custom_id = None if chosen == Outcome.REJECTED else job_of(output).job.custom_id
    usage = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5, cached_tokens=1)
    said = {"custom_id": custom_id, "outcome": chosen, "text": "Because.", "model_id": "echo", "usage": usage}
    return result_record(Result(job_id=job_id, created_at=1, **said), tenant)


def put_batch(connection: Connection, batch_id: str, total: int, tenant: str = "acme", **changed: Any) -> None:
    """Write the row of a running batch."""
    row: dict[str, Any] = {"id": batch_id, "tenant": tenant, "endpoint": CHAT, "input_file_id": "file-1"}
    counts = {"total": total, "completed": 0, "failed": 0, "created_at": 1, "expires_at": 2, "claimed_until": 0}
    connection.execute(batches.insert(), {**row, **counts, "status": "in_progress", **changed})


def result_record(result: Result, tenant: str = "acme", at_ms: int = 1, webhook_id: str | None = None) -> ResultRecord:
    """A result as the view reads it from its topic."""
    return ResultRecord(tenant, result, write_result(result), webhook_id, at_ms, has_callback=False)
