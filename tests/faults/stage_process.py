"""A worker process of the kernel alone, for tests that stop and kill it. The process's argument is its settings as
JSON.

A record's JSON directs the handler. The handler waits until the file `until` exists, then for `ms` milliseconds, and
then writes `id` to the output. `kill` kills the process, and `crash` kills an imagined engine process. With the setting
`sick` every record kills the engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from schemas.settings import KafkaSettings
from telemetry import logs
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.roles.supervision import run_stages, stop_signal
from workers.stage.build import group_stage
from workers.stage.record import Failure, HandlerCrashed, Output, Record
from workers.stage.settings import StageSettings
from workers.stage.window import Limits


class DirectedHandler:
    """A handler that follows the record's JSON."""

    def __init__(self, kafka: KafkaSettings, *, sick: bool) -> None:
        self._topics = kafka.topics
        self._sick = sick
        self._death = asyncio.Event()

    async def handle(self, record: Record) -> Sequence[Output]:
        """Return one output with the record's id."""
        job = json.loads(record.value)
        if job.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.get("crash") or self._sick:
            death, self._death = self._death, asyncio.Event()
            death.set()
            raise HandlerCrashed
        while "until" in job and not Path(job["until"]).exists():
            await asyncio.sleep(0.05)
        try:
            await asyncio.wait_for(self._death.wait(), job["ms"] / 1000)
        except TimeoutError:
            return [Output(self._topics.results, str(job["id"]).encode(), headers=[("outcome", b"succeeded")])]
        raise HandlerCrashed

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return a failed output, and a dead letter with the reason."""
        job_id = str(json.loads(record.value)["id"]).encode()
        reason = [("reason", failure.code.encode()), ("attempts", str(failure.attempts).encode())]
        return [
            Output(self._topics.results, job_id, headers=[("outcome", b"failed")]),
            Output(self._topics.dead_letters, job_id, headers=reason),
        ]


async def main() -> None:
    """Run the stage until SIGTERM."""
    told = json.loads(sys.argv[1])
    logs.configure("stage-process")
    kafka = KafkaSettings.model_validate(told["kafka"])
    limits = Limits(records=told["window"])
    stage = group_stage(
        StageSettings("inference", limits, drain_seconds=told["drain_seconds"]),
        kafka,
        [kafka.topics.requests()],
        told["replica"],
        DirectedHandler(kafka, sick=told["sick"]),
        SystemClock(),
        Metrics(),
    )
    with stop_signal() as stop:
        Path(told["listening"]).touch()  # tells the test that SIGTERM now drains the stage
        await run_stages([stage], stop)


if __name__ == "__main__":
    uvloop.run(main())
