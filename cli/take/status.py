"""`postback status`: the state of jobs, as a gateway knows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.errors import BAD_INPUT, FAILED, fail
from cli.shared.lines import IDS, named_jobs
from cli.shared.through_gateway import GATEWAY, KEY, gateway_client
from producers.times import show_time

if TYPE_CHECKING:
    from postback_client import JobState


def status(
    gateway: Annotated[str, GATEWAY],
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The ids of the jobs.")] = None,
    ids: Annotated[str | None, typer.Option(metavar="FILE|-", help=IDS)] = None,
    key: Annotated[str | None, KEY] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
) -> None:
    """Show the state of jobs, one a line: `queued`, `cancelling`, or the outcome of a job that has ended.

    A queued job with a `not_before` shows the time for which it is scheduled.

    A job that this gateway never accepted for the key's tenant is `never seen`.

    Exit status: 0 all jobs are known, 1 some are not, 2 wrong options.
    """
    if not job_ids and ids is None:
        raise fail("say which jobs: ID or --ids", BAD_INPUT)
    unknown = 0
    with gateway_client(gateway, key) as client:
        from postback_client import JobState, NotFound

        for job_id in named_jobs(ids, job_ids or []).entries:
            try:
                state = client.state(job_id)
            except NotFound:
                unknown += 1
                state = JobState("never seen")
            typer.echo(_json_of(job_id, state) if as_json else f"{job_id}  {_text_of(state)}")
    if unknown:
        raise typer.Exit(FAILED)


def _json_of(job_id: str, state: JobState) -> str:
    scheduled = {} if state.not_before is None else {"not_before": state.not_before}
    return json.dumps({"id": job_id, "status": state.status, **scheduled})


def _text_of(state: JobState) -> str:
    if state.status != "queued" or state.not_before is None:
        return state.status
    return f"queued, scheduled for {show_time(1000 * state.not_before)}"
