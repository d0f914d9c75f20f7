"""The pages of a tenant's work: the overview, batches with their files, jobs, the search box; and the API's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

from sqlalchemy import Connection, func, or_, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.accept.cancelling import FINISHED
from gateway.access import Scope
from gateway.access.recent import Recent
from gateway.batches import files, orders
from gateway.batches.files import names_of
from gateway.batches.orders import BatchRow
from gateway.door import query
from gateway.door.door import Door
from gateway.door.noted import note_objects
from gateway.door.openapi import openapi_document
from gateway.door.routes.batches import LISTED, MOST_LISTED
from gateway.door.routes.batches import cancel as cancel_batch
from gateway.door.routes.files import content_response
from gateway.door.routes.jobs import FILTERS, METADATA, STATUSES, job_filter
from gateway.door.routes.jobs import cancel as cancel_job
from gateway.errors import not_found
from gateway.page.callbacks import callback_routes, may_have_news, newest_first, resent
from gateway.page.desk import Desk, ShownPage, Visit, asked, going_to, guarded
from gateway.page.endpoints import endpoint_routes
from gateway.page.fleet import fleet_route
from gateway.page.letters import letter_routes
from gateway.page.rendering import CONSOLE, duration, link, page, static_routes, web_address
from gateway.paging import page_query
from gateway.store.states import CANCELLABLE, COUNTING, ENDED, LIVE
from gateway.store.tables import batches, jobs
from gateway.view.segments import outcomes_by_minute
from gateway.view.stored_jobs import StoredJob, find_job, jobs_by_custom_id, list_jobs
from gateway.view.trace import Trace, attempts_of, trace
from schemas.outcome import Outcome
from schemas.result import Result, SourceDetails
from telemetry.clock import unix_ms

MINUTES: Final = 15
"""The overview shows the results of this many minutes."""
MOST_BATCHES: Final = 10
FRESH_SECONDS: Final = 1.5
"""Figures up to this age are shown again, so that many open pages of a tenant cause one query of the store."""
_MINUTE_MS: Final = 60_000


def overview_route(desk: Desk) -> Route:
    """Return the route of the first page."""
    door = desk.door

    async def read(tenant: str) -> TenantFigures:
        return await door.store.read(lambda connection: read_figures(connection, tenant, unix_ms(door.clock)))

    recent = Recent(read, FRESH_SECONDS, door.clock)

    async def show(visit: Visit) -> ShownPage:
        figures = await recent.get(visit.tenant)
        return ShownPage("overview", {"figures": figures, "minutes": MINUTES, "now_ms": unix_ms(door.clock)})

    return desk.shows("", Scope.READ, "readOverview", show, tab="Overview")


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


_FIELDS: Final = ("status", "batch", "model", "created_after", "created_before", "metadata")


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One step of a job's timeline."""

    name: str
    at_ms: int | None
    """The step's time, Unix milliseconds; None for a phase, which has a duration only."""
    detail: str
    is_bad: bool = False


async def _jobs_page(visit: Visit) -> ShownPage:
    said = asked(visit.request)
    query.only(said, [each.name for each in FILTERS], METADATA)
    paging, wanted = query.page(said), job_filter(said, visit.door.clock.time())
    found, more = await visit.read(list_jobs, wanted, paging.limit, paging.after, ascending=paging.ascending)
    fields = {name: value for name in _FIELDS if (value := visit.request.query_params.get(name, ""))}
    values = {"rows": found, "has_more": more, "after": paging.after, "fields": fields, "statuses": STATUSES}
    return ShownPage("jobs", values)


async def _job_page(visit: Visit) -> ShownPage:
    identifier = visit.named("job")
    found = await visit.door.store.read(lambda connection: trace(connection, identifier, visit.tenant))
    if not found:
        raise not_found("job", identifier)
    return _page_of(found[0], resent(visit.request), unix_ms(visit.door.clock))


async def _end_job(visit: Visit) -> str:
    call = visit.call("job")
    await cancel_job(call)
    return link("/job", id=call.in_path("job_id"))


def _page_of(one: Trace, said: str, now_ms: int) -> ShownPage:
    job, result = one.job, one.result
    values = {"job": job, "result": result, "steps": steps_of(one), "sources": sources_of(result)}
    has_news = may_have_news(one.attempts, job.finished_ms, now_ms)
    tried = {"attempts": newest_first(one.attempts), "has_news": has_news}
    return ShownPage("job", {**values, **tried, "is_over": job.status in FINISHED, "said": said})


def steps_of(one: Trace) -> list[TimelineStep]:
    """Return the job's timeline from its acceptance to its result."""
    job, result = one.job, one.result
    steps = [TimelineStep("Accepted", job.created_ms, f"through {job.url} by {job.submitted_by or 'a Kafka producer'}")]
    if job.not_before_ms is not None:
        steps.append(TimelineStep("Scheduled", job.not_before_ms, "does not start earlier"))
    if result is None:
        return steps
    if (spent := result.timings) is not None:
        number = len(result.sources)
        used = {0: "no source", 1: "1 source"}.get(number, f"{number} sources")
        tokens = f", {result.usage.completion_tokens} tokens" if result.usage is not None else ""
        steps += [
            TimelineStep("Queued", None, f"for {duration(spent.queued_ms)}"),
            TimelineStep("Enriched", None, f"in {duration(spent.enrich_ms)}, with {used}"),
            TimelineStep(
                "Generated", None, f"in {duration(spent.infer_ms)} by {result.model_id or 'the model'}{tokens}"
            ),
        ]
    is_bad = result.error is not None
    detail = f"{result.error.code}: {result.error.message}" if result.error is not None else "the result is stored"
    steps.append(TimelineStep(str(result.outcome).capitalize(), job.finished_ms, detail, is_bad))
    return steps


def sources_of(result: Result | None) -> list[dict[str, Any]]:
    """Return the sources of an answer in the order of `sources`: `name`, `address` for a link or None, and details."""
    if result is None:
        return []
    details = {each.id: each for each in result.source_details}
    found = [(name, details.get(name) or SourceDetails(id=name, url=name)) for name in result.sources]
    return [{**each.model_dump(), "name": name, "address": web_address(each.url)} for name, each in found]


MOST_OF_A_KIND: Final = 20
_PREFIXES: Final = ("resp_", "chatcmpl-", "cmpl-", "batch_req_")
"""OpenAI's objects have the id of their job behind these."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One object that the search found."""

    kind: str
    """`job`, `batch` or `file`."""
    id: str
    address: str
    """The address of the object's page; of a file, the address of its content."""
    detail: str
    """The job's `custom_id`, the batch's API, or the file's name."""
    status: str | None
    created_ms: int


async def _search(visit: Visit) -> ShownPage | Response:
    said = asked(visit.request)
    query.only(said, ("q",))
    text = said.query_params.get("q", "").strip()
    hits = await visit.read(find_all, text, unix_ms(visit.door.clock)) if text else []
    note_objects(visit.request, [hit.id for hit in hits])
    if len(hits) == 1 and hits[0].kind != "file":
        return going_to(hits[0].address)
    return ShownPage("search", {"q": text, "hits": hits, "most": MOST_OF_A_KIND})


def find_all(connection: Connection, tenant: str, text: str, now_ms: int) -> list[Hit]:
    """Return the tenant's objects with this id, `custom_id` or file name, and the batches of the files found.

    Of each kind, the newest MOST_OF_A_KIND.
    """
    found = [*_files(connection, tenant, text, now_ms)]
    names = [text, *(hit.id for hit in found)]
    return [*_jobs(connection, tenant, text), *_batches(connection, tenant, names), *found]


def _jobs(connection: Connection, tenant: str, text: str) -> Iterable[Hit]:
    names = [text, *(text.removeprefix(prefix) for prefix in _PREFIXES if text.startswith(prefix))]
    by_id = [job for name in names if (job := find_job(connection, tenant, name)) is not None]
    named = jobs_by_custom_id(connection, tenant, text, MOST_OF_A_KIND)
    return {job.job_id: _job(job) for job in (*by_id, *named)}.values()


def _job(job: StoredJob) -> Hit:
    address = link("/job", id=job.job_id)
    return Hit("job", job.job_id, address, job.custom_id or "", job.status, job.created_ms)


def _batches(connection: Connection, tenant: str, names: list[str]) -> Iterator[Hit]:
    """Yield the batches with one of these names as their id, or as the id of one of their files."""
    columns = ("id", "input_file_id", "output_file_id", "error_file_id")
    these = select(batches).where(batches.c.tenant == tenant, or_(*(batches.c[each].in_(names) for each in columns)))
    for row in connection.execute(these.order_by(batches.c.id.desc()).limit(MOST_OF_A_KIND)):
        yield Hit("batch", row.id, link("/batch", id=row.id), row.endpoint, row.status, row.created_at)


def _files(connection: Connection, tenant: str, text: str, now_ms: int) -> Iterator[Hit]:
    for row in files.named(connection, tenant, text, now_ms, MOST_OF_A_KIND):
        yield Hit("file", row.id, link("/file", id=row.id), row.filename, None, row.created_at)


_STEPS: Final = (
    ("Created", "created_at"),
    ("In progress", "in_progress_at"),
    ("Finalizing", "finalizing_at"),
    ("Cancelling", "cancelling_at"),
    ("Completed", "completed_at"),
    ("Failed", "failed_at"),
    ("Expired", "expired_at"),
    ("Cancelled", "cancelled_at"),
)
MOST_ERRORS: Final = 20
"""The maximum number of errors of an input file that the page shows."""


def page_routes(door: Door) -> list[BaseRoute]:
    """Return all routes below `/console`."""
    desk = Desk(door)
    return [
        *static_routes(),
        Route("/docs", partial(_docs, door)),
        *desk.routes(),
        overview_route(desk),
        desk.shows("/batches", Scope.READ, "listBatches", _batches_page, tab="Batches"),
        desk.shows("/batch", Scope.READ, "getBatch", _batch_page),
        desk.shows("/file", Scope.READ, "getFileContent", _file),
        desk.acts("/batch/cancel", Scope.CANCEL, "cancelBatch", _end_batch),
        desk.shows("/jobs", Scope.READ, "listJobs", _jobs_page, tab="Jobs"),
        desk.shows("/job", Scope.READ, "getJob", _job_page),
        desk.acts("/job/cancel", Scope.CANCEL, "cancelJob", _end_job),
        desk.shows("/search", Scope.READ, "search", _search),
        *callback_routes(desk),
        *letter_routes(desk),
        *endpoint_routes(desk),
        fleet_route(desk),
        Route(f"{CONSOLE}/{{rest:path}}", guarded(_unknown), methods=["GET", "POST"]),
    ]


async def _docs(door: Door, request: Request) -> Response:
    """Describe the API, by its OpenAPI document. The page needs no credential."""
    await door.visit(request)
    return _described()


@cache
def _described() -> Response:
    """Return the API's page, which is made at the first request and kept."""
    return page("docs", document=openapi_document())


async def _unknown(request: Request) -> Response:
    """Answer for an address that no page has."""
    if request.url.path == f"{CONSOLE}/":
        return going_to(CONSOLE)
    return page("error", 404, code=404, message="The console has no such page.")


def files_of(row: BatchRow) -> dict[str, str | None]:
    """Return the ids of a batch's files by their names on the page; None for a file that does not exist."""
    return {"Input file": row.input_file_id, "Output file": row.output_file_id, "Error file": row.error_file_id}


async def _batches_page(visit: Visit) -> ShownPage:
    wanted = page_query(asked(visit.request).query_params, most=MOST_LISTED, default=LISTED, kind="batch")
    found = await visit.read(orders.page, wanted)
    names = await visit.read(names_of, [row.input_file_id for row in found.rows])
    values = {"rows": found.rows, "has_more": found.has_more, "after": wanted.after, "names": names}
    return ShownPage("batches", {**values, "now_ms": unix_ms(visit.door.clock)})


async def _batch_page(visit: Visit) -> ShownPage:
    row = await visit.read(orders.find, visit.named("batch"))
    names = await visit.read(names_of, [file for file in files_of(row).values() if file])
    attempts = await visit.read(attempts_of, row.id)
    steps = [(name, at) for name, column in _STEPS if (at := getattr(row, column)) is not None]
    values = {"row": row, "steps": sorted(steps, key=lambda step: step[1]), "most_errors": MOST_ERRORS}
    states = {"is_over": row.status in ENDED, "can_be_cancelled": row.status in CANCELLABLE}
    now_ms, end = unix_ms(visit.door.clock), max((at for _, at in steps), default=0)
    has_news = may_have_news(attempts, end if row.status in ENDED else None, now_ms)
    tried = {"attempts": newest_first(attempts), "has_news": has_news, "said": resent(visit.request)}
    return ShownPage("batch", {**values, **states, **tried, "files": files_of(row), "names": names, "now_ms": now_ms})


async def _file(visit: Visit) -> Response:
    row = await visit.read(files.find, visit.named("file"), unix_ms(visit.door.clock))
    return await content_response(visit.door, row, visit.request.headers.get("range"))


async def _end_batch(visit: Visit) -> str:
    call = visit.call("batch")
    await cancel_batch(call)
    return link("/batch", id=call.in_path("batch_id"))
