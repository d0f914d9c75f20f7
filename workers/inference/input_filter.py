"""The operator's input filter, applied after a job's admission and before its sources are read.

Without rules, the filter does nothing.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from schemas.codec import ReceivedJob
from schemas.problems import Problem
from schemas.screening import ScreeningFinding, Verdict, joined
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.enrichment.turns import Asker, Turns
from workers.inference.job_identity import ScreenedJob
from workers.inference.lifetime import JobIsOver, Lifetimes

if TYPE_CHECKING:
    from screening.screen import Screen, Screened  # for types only: workers without rules lack the extra `screening`

log = get_logger()

LONG_JOB_BYTES: Final = 8 * 1024
"""Jobs of at least this size are read in a thread, so that the event loop serves other jobs meanwhile."""
_THREADS: Final = 2
_FIELDS: Final = {"search": "sources.search.query", "documents": "sources.documents"}
"""Maps each short name in the filter's findings to the job's field."""


class UnscreenedJob(JobIsOver):
    """A job was cancelled, or has expired, before the filter had read it."""

    def __init__(self, received: ReceivedJob) -> None:
        super().__init__()
        self.received = replace(received, job=received.job.model_copy(update={"metadata": {}}))
        """The job without its metadata, because the result would repeat the metadata unredacted."""


class InputFilter:
    """Applies the rules to jobs, and counts the verdicts."""

    def __init__(self, screen: Screen | None, lifetimes: Lifetimes, metrics: Metrics) -> None:
        self._screen = screen
        self._lifetimes = lifetimes
        self._threads = ThreadPoolExecutor(_THREADS, "screening") if screen is not None else None
        self._turns = Turns(_THREADS)
        """Tenants take turns at the threads, because one payload may occupy a thread for half a minute."""
        self._verdicts = metrics.screened.begin()

    async def screened(self, received: ReceivedJob, size: int) -> ReceivedJob:
        """Return the job with the findings, and with markers in place of redacted matches. `size` is in bytes.

        Raises InvalidJob with the code `screened` for a job that a rule rejects. Raises UnscreenedJob if the job is
        over before a thread has read it; the thread reads on, since nothing can stop it.
        """
        screen = self._screen
        if screen is None:
            return received
        if size < LONG_JOB_BYTES and not screen.waits:
            found = screen.check(received.tenant, received.job)
        else:
            try:
                found = await self._lifetimes.while_alive(received, lambda: self._in_turn(screen, received))
            except JobIsOver:
                raise UnscreenedJob(received) from None
        self._verdicts[found.verdict].inc()
        if found.verdict is Verdict.PASS:
            return received
        log.info(
            f"Screened job {received.job_id}: {found.verdict}.",
            action="job-screened",
            job_id=received.job_id,
            verdict=str(found.verdict),
            rules=list(dict.fromkeys(finding.rule for finding in found.findings)),
        )
        findings = joined(received.screening, found.findings)
        if found.verdict is Verdict.REJECT:
            raise ScreenedJob(received, tuple(map(_problem, found.refusals)), findings)
        return replace(received, job=found.job, screening=findings)

    async def _in_turn(self, screen: Screen, received: ReceivedJob) -> Screened:
        loop = asyncio.get_running_loop()
        async with self._turns.place(Asker(received.tenant)):
            return await loop.run_in_executor(self._threads, screen.check, received.tenant, received.job)


def _problem(finding: ScreeningFinding) -> Problem:
    """Return the reason of a rejection, without the matched text."""
    field = _FIELDS.get(finding.field, finding.field)
    if finding.kind == "unavailable":
        return Problem(
            field, f"the rule {finding.rule} of the input filter cannot read it now; send the job again later"
        )
    return Problem(field, f"the rule {finding.rule} of the input filter rejects it")
