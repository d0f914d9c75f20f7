"""`postback cancel ID`: a job that nobody wants any more."""

from __future__ import annotations

from typing import Annotated

import typer

from console.errors import BAD_INPUT, fail, quiet_clients, say, telling
from console.settings import checked_tenant, fleet_settings


def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs' ids.")],
    tenant: Annotated[str, typer.Option(help="Whose jobs.")] = "default",
    undo: Annotated[
        bool, typer.Option("--undo", help="Take cancellations back, so that jobs of these ids are answered again.")
    ] = False,
) -> None:
    """Cancel jobs: those that wait are not begun, those that run are cut off, and each ends as `cancelled`.

    A job that has its result keeps it. The result, called back where the job asks for it, says which came first. An id
    stays cancelled for 30 days, as long as a job may be redriven: to submit one anew under it, take that back with
    --undo.
    """
    quiet_clients()
    from producers.cancel import cancel as put
    from producers.cancel import take_back
    from producers.errors import ProducerError

    tenant, job_ids = checked_tenant(tenant), [_checked_id(job_id) for job_id in job_ids]
    with telling(ProducerError):
        (take_back if undo else put)(fleet_settings().kafka, tenant, job_ids)
    undone = f"{len(job_ids)} cancellations are taken back; jobs of these ids are answered again"
    say(undone if undo else f"{len(job_ids)} jobs are to be cancelled, unless they have a result already")


def _checked_id(job_id: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from schemas.job import Identifier

    try:
        return TypeAdapter[str](Identifier).validate_python(job_id)
    except ValidationError:
        raise fail("ID: 1 to 256 characters of printable ASCII without spaces", BAD_INPUT) from None
