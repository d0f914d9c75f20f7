"""`postback cancel`: cancels jobs, or takes cancellations back."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.shared.audited import audited
from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.lines import IDS, named_jobs, tenant_of
from cli.shared.settings import fleet_settings
from cli.shared.through_gateway import GATEWAY, KEY, gateway_client


def cancel(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The ids of the jobs.")] = None,
    ids: Annotated[str | None, typer.Option(metavar="FILE|-", help=IDS)] = None,
    tenant: Annotated[
        str | None, typer.Option(help="The jobs' tenant; by default the receipt's tenant, or else `default`.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take cancellations back, so that jobs with these ids are answered again.")
    ] = False,
    gateway: Annotated[str | None, GATEWAY] = None,
    key: Annotated[str | None, KEY] = None,
) -> None:
    """Cancel jobs: waiting jobs are not begun, running jobs are aborted, and each ends as `cancelled`.

    A cancellation that comes after a job's result changes nothing: the job's result shows which of the two came first.
    An id stays cancelled for eight days, longer than a job can live. To use the id for a new job, take the
    cancellation back with --undo. `postback dead-letters redrive` does not put back dead letters of cancelled jobs.
    """
    from cli.operations.cancel import cancel as put
    from cli.operations.cancel import take_back

    if not job_ids and ids is None:
        raise fail("say which jobs: ID or --ids", BAD_INPUT)
    named = named_jobs(ids, job_ids or [])
    if gateway is not None:
        if undo:
            raise fail("--undo is for Kafka: a gateway takes no cancellation back", BAD_INPUT)
        _cancel_through(gateway, key, list(named.entries))
        return
    whose, wanted = tenant_of(named, tenant), list(named.entries)
    action = "takeBackCancellation" if undo else "cancelJob"
    with audited(action, "change", whose, wanted):
        (take_back if undo else put)(fleet_settings().kafka, whose, wanted)
    undone = f"{len(wanted)} cancellations are taken back; jobs of these ids are answered again"
    say(undone if undo else f"{len(wanted)} jobs are to be cancelled, unless they have a result already")


def _cancel_through(gateway: str, key: str | None, job_ids: list[str]) -> None:
    """Cancel jobs through a gateway, and exit with 1 if one of them has ended or is unknown."""
    left = 0
    with gateway_client(gateway, key) as client:
        from postback_client import Conflict, NotFound

        for job_id in job_ids:
            try:
                client.cancel(job_id)
            except (Conflict, NotFound) as error:
                left += 1
                say(str(error))
    say(f"{len(job_ids) - left} jobs are to be cancelled, unless they have a result already")
    if left:
        raise typer.Exit(FAILED)
