"""A worker's handler with a real enricher, for jobs that name something to fetch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from schemas.codec import read_result
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.result import Result
from telemetry.clock import unix_ms
from tests.handlers import TOPICS
from tests.integration.raw_server import CLOCK
from workers.inference.handler import InferenceHandler
from workers.stage.record import Record


class FetchingWorker:
    """Answers records of jobs, and cancels jobs of the default tenant."""

    def __init__(self, handler: InferenceHandler) -> None:
        self.handler = handler

    def cancel(self, job_id: str) -> None:
        """Cancel this job of the default tenant."""
        said = JobControl(tenant="default", job_id=job_id, state=ControlState.CANCELLED, at=unix_ms(CLOCK))
        self.handler.cancellations.apply(job_key_bytes(said.key), write_control(said))

    async def answered(self, job: Mapping[str, Any], headers: Sequence[tuple[str, bytes]] = ()) -> Result:
        """The one result of this job."""
        at_ms = int(CLOCK.time() * 1000)
        record = Record(TOPICS.requests(), 0, 7, json.dumps(job).encode(), b"key", [*headers], at_ms)
        outputs = await self.handler.handle(record)
        results = [output for output in outputs if output.topic == TOPICS.results]
        assert len(results) == 1
        return read_result(results[0].value)

    async def cancelled(self, job_id: str, answer: Coroutine[Any, Any, Result], targets: Sequence[str]) -> Result:
        """The result of a job that is cancelled once its server has a request."""
        running = asyncio.ensure_future(answer)
        while not targets:
            await asyncio.sleep(0.001)
        self.cancel(job_id)
        return await running
