"""The log line that tells the person who started a process that the process is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from telemetry.health import Readiness
from telemetry.logs import get_logger
from workers.system.side_task import SideTask

LOOK_SECONDS = 0.1

log = get_logger()


class ReadyLine(SideTask):
    """Logs one line, as soon as `/readyz` would answer 200 for the first time.

    `duties` are phrases such as `answers model "big" from topic model_requests`.
    """

    def __init__(self, readiness: Callable[[], Readiness], duties: Sequence[str], replica: str, metrics_url: str):
        self._readiness = readiness
        self._duties = duties
        self._replica = replica
        self._metrics_url = metrics_url

    async def ended(self) -> None:
        """Wait until the process is ready, log the ready line, and then wait until this task is cancelled."""
        while True:
            if self._readiness().ready:
                break
            await asyncio.sleep(LOOK_SECONDS)
        log.info(
            f"Ready: {' and '.join(self._duties)}, as replica {self._replica}; metrics on {self._metrics_url}.",
            action="serving",
            replica=self._replica,
            metrics_url=self._metrics_url,
        )
        await asyncio.Event().wait()
