"""The search box of every page: finds the tenant's jobs, batches and files by id, `custom_id` or file name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, or_, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.access import Scope
from gateway.batches import files
from gateway.door import query
from gateway.door.door import Door
from gateway.door.noted import note_objects
from gateway.page.asked import asked
from gateway.page.desk import Desk, ShownPage, going_to
from gateway.page.rendering import link
from gateway.page.visitors import Visitor
from gateway.store.tables import batches
from gateway.view.stored_jobs import StoredJob, find_job, jobs_by_custom_id
from telemetry.clock import unix_ms

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


def search_routes(door: Door, desk: Desk) -> list[Route]:
    """Return the route of the search."""

    async def search(request: Request, visitor: Visitor) -> ShownPage | Response:
        said = asked(request)
        query.only(said, ("q",))
        text, tenant, now_ms = said.query_params.get("q", "").strip(), visitor.principal.tenant, unix_ms(door.clock)
        hits = await door.store.read(lambda connection: find_all(connection, tenant, text, now_ms)) if text else []
        note_objects(request, [hit.id for hit in hits])
        if len(hits) == 1 and hits[0].kind != "file":
            return going_to(hits[0].address)
        return ShownPage("search", {"q": text, "hits": hits, "most": MOST_OF_A_KIND})

    return [desk.shows("/search", Scope.READ, "search", search)]


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
