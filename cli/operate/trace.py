"""`postback trace`: a job's way to its answer and its callbacks, from the gateway's store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli.fleet.gateway_store import StoreUrl, opened_store
from cli.shared.errors import FAILED, fail
from cli.shared.settings import checked_tenant
from cli.shared.terminal import harmless
from producers.times import show_time

if TYPE_CHECKING:
    from gateway.view.trace import Attempt, Trace
    from schemas.result import Result


def trace(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="Show only this tenant's job.")] = None,
    store: StoreUrl = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line, which includes the answer.")
    ] = False,
) -> None:
    """Show one job from its submission to its callbacks: submitter, hash of the prompt, model, sources, attempts.

    The command reads the gateway's store. `postback endpoints deliveries JOB` reads Kafka instead, for fleets without a
    gateway.
    """
    if tenant is not None:
        tenant = checked_tenant(tenant)
    with opened_store(store) as opened:
        from gateway.view import trace as traces

        found = opened.read(partial(traces.trace, job_id=job_id, tenant=tenant))
    if not found:
        raise fail(f"the store has no job {job_id}; check the id, --tenant and --store", FAILED)
    for one in found:
        for line in [json.dumps(one.json())] if as_json else _page(one):
            typer.echo(line)


def _page(one: Trace) -> Iterator[str]:
    job, result = one.job, one.result
    yield f"job        {job.job_id}, tenant {one.tenant}, {job.status}"
    if job.batch_id is not None:
        yield f"batch      {job.batch_id}, line {job.line}, file {one.batch_file or 'unknown'}"
    yield f"submitted  {show_time(job.created_ms)} by {job.submitted_by or 'a Kafka producer'} through {job.url}"
    if job.not_before_ms is not None:
        yield f"scheduled  for {show_time(job.not_before_ms)}"
    if job.prompt_sha256 is not None or job.line is None:
        yield f"prompt     sha256 {job.prompt_sha256 or 'unknown'}"
    else:
        yield f"prompt     line {job.line + 1} of file {one.batch_file or 'unknown'}"
    if result is not None:
        yield from _answer(result, job.finished_ms)
    for attempt in one.attempts:
        yield f"callback   {_attempt(attempt)}"
    if result is not None and not one.attempts:
        yield "callback   none was tried"


def _answer(result: Result, finished_ms: int | None) -> Iterator[str]:
    yield f"model      {result.model_id or 'unknown'} on engine {result.engine or 'unknown'}"
    if result.timings is not None:
        spent = result.timings
        phases = f"queued {spent.queued_ms:.0f} ms, sources {spent.enrich_ms:.0f} ms, model {spent.infer_ms:.0f} ms"
        yield f"phases     {phases}"
    yield f"finished   {show_time(finished_ms or 1000 * result.created_at)} as {result.outcome}"
    if result.error is not None:
        yield f"error      {result.error.code}: {harmless(result.error.message)}"
    if result.refusal is not None:
        yield f"refusal    {harmless(result.refusal)}"
    for note in result.notes:
        yield f"note       {harmless(note)}"
    titles = {each.id: each.title for each in result.source_details if each.title}
    for source in result.sources:
        yield f"source     {harmless(source)}" + (f" “{harmless(titles[source])}”" if source in titles else "")
    text = result.text or ""
    for cited in result.citations:
        words = harmless(text[cited.start : cited.end])
        yield f"citation   {cited.support} by {harmless(cited.source)}: “{words}”"


def _attempt(attempt: Attempt) -> str:
    end = "delivered" if attempt.error is None else f"failed ({harmless(attempt.error)})"
    status = "" if attempt.status is None else f", status {attempt.status}"
    where = harmless(attempt.origin or "unknown")
    return f"{show_time(attempt.at_ms)} attempt {attempt.attempt} to {where} {end}{status}"
