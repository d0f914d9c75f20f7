"""The first page: a tenant's waiting work, the results of the last minutes, and unfinished batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select
from starlette.requests import Request
from starlette.routing import Route

from gateway.access import Scope
from gateway.access.recent import Recent
from gateway.batches.orders import BatchRow
from gateway.door.door import Door
from gateway.page.desk import Desk, ShownPage
from gateway.page.visitors import Visitor
from gateway.store.states import COUNTING, LIVE
from gateway.store.tables import batches, jobs
from gateway.view.segments import outcomes_by_minute
from schemas.outcome import Outcome
from telemetry.clock import unix_ms

MINUTES: Final = 15
"""The overview shows the results of this many minutes."""
MOST_BATCHES: Final = 10
FRESH_SECONDS: Final = 1.5
"""Figures up to this age are shown again, so that many open pages of a tenant cause one query of the store."""
_MINUTE_MS: Final = 60_000


def overview_routes(door: Door, desk: Desk) -> list[Route]:
    """Return the route of the first page."""

    async def read(tenant: str) -> TenantFigures:
        return await door.store.read(lambda connection: read_figures(connection, tenant, unix_ms(door.clock)))

    recent = Recent(read, FRESH_SECONDS, door.clock)

    async def show(_request: Request, visitor: Visitor) -> ShownPage:
        figures = await recent.get(visitor.principal.tenant)
        return ShownPage("overview", {"figures": figures, "minutes": MINUTES, "now_ms": unix_ms(door.clock)})

    return [desk.shows("", Scope.READ, "readOverview", show)]


@dataclass(frozen=True, slots=True)
class Minute:
    """The results of one minute."""

    at_ms: int
    succeeded: int
    others: int


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """A tenant's figures at one time."""

    jobs: int
    """The number of single jobs that the gateway accepted and that have no result yet."""
    lines: int
    """The number of lines in unfinished batches that have no result yet."""
    outcomes: Mapping[str, int]
    """For each outcome, the number of results in the last minutes."""
    minutes: Sequence[Minute]
    """The last minutes, oldest first. The latest minute is not over."""
    batches: Sequence[BatchRow]
    """Unfinished batches, newest first."""

    @property
    def waiting(self) -> int:
        """The number of jobs and lines without a result."""
        return self.jobs + self.lines

    @property
    def finished(self) -> int:
        """The number of results of the last minutes."""
        return sum(self.outcomes.values())

    @property
    def busiest(self) -> int:
        """The largest number of results in one of the minutes; at least 1."""
        return max(1, *(minute.succeeded + minute.others for minute in self.minutes))


def read_figures(connection: Connection, tenant: str, now_ms: int) -> TenantFigures:
    """Return the tenant's figures."""
    mine = jobs.c.tenant == tenant
    waiting = select(func.count()).select_from(jobs).where(mine, jobs.c.finished_at.is_(None))
    open_lines = select(func.sum(batches.c.total - batches.c.completed - batches.c.failed)).where(
        batches.c.tenant == tenant, batches.c.status.in_(COUNTING)
    )
    live = select(batches).where(batches.c.tenant == tenant, batches.c.status.in_(LIVE))
    first = now_ms // _MINUTE_MS - MINUTES + 1
    found = _finished(connection, tenant, first)
    by_outcome: Counter[str] = Counter(dict.fromkeys(map(str, Outcome), 0))
    for (_, status), number in found.items():
        by_outcome[status] += number
    return TenantFigures(
        jobs=connection.execute(waiting).scalar_one(),
        lines=int(connection.execute(open_lines).scalar() or 0),
        outcomes=dict(by_outcome),
        minutes=[_minute(found, minute) for minute in range(first, first + MINUTES)],
        batches=connection.execute(live.order_by(batches.c.id.desc()).limit(MOST_BATCHES)).all(),
    )


def _finished(connection: Connection, tenant: str, first: int) -> Counter[tuple[int, str]]:
    """Return the numbers of results by minute and outcome, from the minute `first` of the epoch on."""
    minute = (jobs.c.finished_at // _MINUTE_MS).label("minute")
    recent = select(minute, jobs.c.status, func.count()).where(
        jobs.c.tenant == tenant, jobs.c.finished_at >= first * _MINUTE_MS
    )
    grouped = connection.execute(recent.group_by(minute, jobs.c.status))
    of_jobs = Counter({(int(at), status): number for at, status, number in grouped})
    return of_jobs + outcomes_by_minute(connection, tenant, first * _MINUTE_MS)


def _minute(found: Counter[tuple[int, str]], minute: int) -> Minute:
    succeeded = found[minute, Outcome.SUCCEEDED]
    others = sum(found[minute, each] for each in Outcome if each is not Outcome.SUCCEEDED)
    return Minute(minute * _MINUTE_MS, succeeded, others)
