"""The input filter at the door: it refuses rejected jobs, and redacts others before they are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.access import Principal
from gateway.door.door import Door
from gateway.door.errors import ApiError
from schemas.job import Job

if TYPE_CHECKING:
    from screening.screen import Screen, Screened


async def screened(door: Door, principal: Principal, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that the operator's rules allow, with markers in place of redacted matches.

    Raises ApiError (400) that names each rule and field of rejected jobs, and repeats none of their text.
    """
    if door.screen is None:
        return list(jobs)
    # In a thread: a large job takes milliseconds for each rule, and a classifier waits for its process.
    found = await asyncio.to_thread(_checked, door.screen, principal.tenant, jobs)
    if problems := [problem for index, one in enumerate(found) for problem in _problems(index, one)]:
        said = "; ".join(f"job {problem['index']}: {problem['reason']}" for problem in problems)
        raise ApiError(400, "screened", f"The input filter refuses this: {said}.", problems=problems)
    return [one.job for one in found]


def _checked(screen: Screen, tenant: str, jobs: Sequence[Job]) -> list[Screened]:
    return [screen.check(tenant, job) for job in jobs]


def _problems(index: int, one: Screened) -> list[dict[str, int | str]]:
    return [
        {"index": index, "field": finding.field, "reason": f"rule {finding.rule} matches {finding.field}"}
        for finding in one.refusals
    ]
