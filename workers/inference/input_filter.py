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
from workers.inference.context import Finish, JobContext, Missing
from workers.inference.job_identity import ScreenedJob
from workers.inference.lifetime import JobIsOver, Lifetimes
from workers.inference.pace import EnginePace

if TYPE_CHECKING:
    from workers.screening.screen import (  # for types only: workers without rules lack the extra `screening`
        Screen,
        Screened,
    )

log = get_logger()

LONG_JOB_BYTES: Final = 8 * 1024
"""Jobs of at least this size are read in a thread, so that the event loop serves other jobs meanwhile."""
_THREADS: Final = 2
_FIELDS: Final = {"search": "sources.search.query", "documents": "sources.documents"}
"""Maps each short name in the filter's findings to the job's field."""


class InputFilter:
    """Applies the rules to jobs, and counts the verdicts."""

    def __init__(self, screen: Screen | None, lifetimes: Lifetimes, pace: EnginePace, metrics: Metrics) -> None:
        self._screen = screen
        self._pace = pace
        self._lifetimes = lifetimes
        self._threads = ThreadPoolExecutor(_THREADS, "screening") if screen is not None else None
        self._turns = Turns(_THREADS)
        """Tenants take turns at the threads, because one payload may occupy a thread for half a minute."""
        self._verdicts = metrics.screened.begin()

    async def screen(self, job: JobContext) -> Finish | Missing | None:
        """Put the findings into the job, and markers in place of redacted matches.

        The way ends for a job that a rule rejects. A job that is over before a thread has read it loses its metadata,
        because its result would repeat the metadata unredacted. The thread reads on, since nothing can stop it.
        """
        screen, received = self._screen, job.received
        if screen is None:
            return None
        if job.size < LONG_JOB_BYTES and not screen.waits:
            found = screen.check(received.tenant, received.job)
        else:
            try:
                with self._pace.preparing():
                    found = await self._lifetimes.while_alive(received, lambda: self._in_turn(screen, received))
            except JobIsOver:
                job.received = replace(received, job=received.job.model_copy(update={"metadata": {}}))
                return Missing("expired", "the job ended before the input filter had read it")
        self._verdicts[found.verdict].inc()
        if found.verdict is Verdict.PASS:
            return None
        log.info(
            f"Screened job {received.job_id}: {found.verdict}.",
            action="job-screened",
            job_id=received.job_id,
            verdict=str(found.verdict),
            rules=list(dict.fromkeys(finding.rule for finding in found.findings)),
        )
        findings = joined(received.screening, found.findings)
        if found.verdict is Verdict.REJECT:
            return Finish(letter=ScreenedJob(received, tuple(map(_problem, found.refusals)), findings))
        job.received = replace(received, job=found.job, screening=findings)
        return None

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
