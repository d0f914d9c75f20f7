"""Jobs with the filters of `GET /v1/jobs`, one job's timeline with its answer, and its cancellation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.routing import Route

from gateway.accept.cancelling import FINISHED
from gateway.access import Scope
from gateway.door import query
from gateway.door.cancelling import cancel
from gateway.door.door import Door
from gateway.door.noted import note_objects
from gateway.door.routes.jobs import FILTERS, METADATA, STATUSES, job_filter
from gateway.errors import not_found
from gateway.page.asked import asked, identifier_of
from gateway.page.callbacks import may_have_news, newest_first, resent
from gateway.page.desk import Desk, Form, ShownPage
from gateway.page.rendering import duration, link, web_address
from gateway.page.visitors import Visitor
from gateway.view.stored_jobs import list_jobs
from gateway.view.trace import Trace, trace
from schemas.result import Result, SourceDetails
from telemetry.clock import unix_ms

_FIELDS: Final = ("status", "batch", "model", "created_after", "created_before", "metadata")


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One step of a job's timeline."""

    name: str
    at_ms: int | None
    """The step's time, Unix milliseconds; None for a phase, which has a duration only."""
    detail: str
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class ShownSource:
    """One source of an answer."""

    name: str
    address: str | None
    """The address of the source's link; None without a link."""
    title: str | None = None
    published: str | None = None
    doi: str | None = None
    read_by: str | None = None


def job_routes(door: Door, desk: Desk) -> list[Route]:
    """Return the routes of jobs."""

    async def several(request: Request, visitor: Visitor) -> ShownPage:
        said = asked(request)
        query.only(said, [each.name for each in FILTERS], METADATA)
        paging, wanted = query.page(said), job_filter(said, door.clock.time())
        found, more = await door.store.read(
            lambda connection: list_jobs(
                connection, visitor.principal.tenant, wanted, paging.limit, paging.after, ascending=paging.ascending
            )
        )
        fields = {name: value for name in _FIELDS if (value := request.query_params.get(name, ""))}
        values = {"rows": found, "has_more": more, "after": paging.after, "fields": fields, "statuses": STATUSES}
        return ShownPage("jobs", values)

    async def one(request: Request, visitor: Visitor) -> ShownPage:
        identifier = identifier_of(request.query_params, "job")
        note_objects(request, [identifier])
        found = await door.store.read(lambda connection: trace(connection, identifier, visitor.principal.tenant))
        if not found:
            raise not_found("job", identifier)
        return _page_of(found[0], resent(request), unix_ms(door.clock))

    async def end(request: Request, visitor: Visitor, form: Form) -> str:
        identifier = identifier_of(form, "job")
        note_objects(request, [identifier])
        await cancel(door, visitor.principal, identifier)
        return link("/job", id=identifier)

    return [
        desk.shows("/jobs", Scope.READ, "listJobs", several),
        desk.shows("/job", Scope.READ, "getJob", one),
        desk.acts("/job/cancel", Scope.CANCEL, "cancelJob", end),
    ]


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


def sources_of(result: Result | None) -> list[ShownSource]:
    """Return the sources of an answer, in the order of `sources`."""
    if result is None:
        return []
    details = {each.id: each for each in result.source_details}
    return [_source(name, details.get(name)) for name in result.sources]


def _source(name: str, details: SourceDetails | None) -> ShownSource:
    if details is None:
        return ShownSource(name, web_address(name))
    address = web_address(details.url)
    return ShownSource(name, address, details.title, details.published, details.doi, details.read_by)
