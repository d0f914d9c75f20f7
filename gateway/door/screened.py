"""The input filter at the door: it refuses rejected jobs, and redacts others before they are stored.

The findings travel with the job to its result, and the request's audit line names the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gateway.door.endpoint import Call
from gateway.door.noted import note_screening
from gateway.errors import ApiError
from schemas.job import Job
from schemas.screening import ScreeningFinding

if TYPE_CHECKING:
    from workers.screening.screen import Screen, Screened

MOST_AT_ONCE = 4 * 1024
"""The maximum number of bytes of a body that is checked on the event loop."""


class ScreenedIn(NamedTuple):
    """A job that the filter allows."""

    job: Job
    """The job, with markers in place of redacted matches."""
    findings: tuple[ScreeningFinding, ...] = ()


async def screened(call: Call, jobs: Sequence[Job], size: int) -> list[ScreenedIn]:
    """Return the jobs, of a body with `size` bytes, that the operator's rules allow.

    Raises ApiError (400) that names each rule and field of rejected jobs, and repeats none of their text.
    """
    door = call.door
    if door.screen is None:
        return [ScreenedIn(job) for job in jobs]
    # A large job takes milliseconds for each rule, and a classifier waits for its process; both need a thread. For any
    # other job, the way to a thread and back would take longer than the check.
    if size > MOST_AT_ONCE or door.screen.waits:
        found = await door.screening.run(_checked, door.screen, call.tenant, jobs)
    else:
        found = _checked(door.screen, call.tenant, jobs)
    for one in found:
        door.metrics.screened.labels(one.verdict).inc()
    strictest = max((one.verdict for one in found), key=lambda verdict: verdict.strictness)
    note_screening(call.request, strictest, [finding.rule for one in found for finding in one.findings])
    if problems := [problem for index, one in enumerate(found) for problem in _problems(index, one)]:
        said = "; ".join(f"job {problem['index']}: {problem['reason']}" for problem in problems)
        raise ApiError(400, "screened", f"The input filter refuses this: {said}.", problems=problems)
    return [ScreenedIn(one.job, one.findings) for one in found]


def _checked(screen: Screen, tenant: str, jobs: Sequence[Job]) -> list[Screened]:
    return [screen.check(tenant, job) for job in jobs]


def _problems(index: int, one: Screened) -> list[dict[str, int | str]]:
    return [
        {"index": index, "field": finding.field, "reason": f"rule {finding.rule} matches {finding.field}"}
        for finding in one.refusals
    ]
