"""`postback endpoints deliveries ID`: shows the timeline of a job's callback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import FAILED, fail
from cli.shared.settings import checked_tenant, fleet_settings
from cli.shared.terminal import harmless
from cli.shared.times import HELP, TIME, checked_time
from workers.stage.progress import done_offsets

if TYPE_CHECKING:
    from cli.operations.deliveries import CallbackStep


def deliveries(
    wanted: Annotated[str, typer.Argument(metavar="ID", help="The id of a job or of a webhook.")],
    tenant: Annotated[
        str | None,
        typer.Option(help="Show only this tenant's job, since jobs of several tenants may have the same id."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar=TIME, help=f"Read only records of this time or later. {HELP}")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the timeline of a job's callback: each attempt and its answer, each wait and its reason, and the end.

    Without one, the command says if the job still waits for its answer, or was never seen.

    Exit status: 0 if Kafka still has records of the callback, 1 if it has none.
    """
    from cli.operations.deliveries import deliveries as read
    from cli.operations.unanswered import look_into_lanes
    from producers.scan import Scanner
    from producers.times import show_time

    since_ms = checked_time("--since", since)
    tenant = checked_tenant(tenant) if tenant is not None else None
    kafka = fleet_settings().kafka
    look = None
    with Scanner(kafka) as scanner:
        steps = read(kafka, scanner, wanted, tenant, since_ms)
        if not steps:
            look = look_into_lanes(kafka, scanner, done_offsets, {wanted}, tenant)
    if as_json:
        typer.echo(json.dumps([step.said() for step in steps], indent=1))
    else:
        for line in timeline(steps):
            typer.echo(line)
    if look is not None:
        if wanted in look.starts_ms:
            raise fail(f"{wanted} is scheduled for {show_time(look.starts_ms[wanted])}, and has not started", FAILED)
        if look.waiting:
            raise fail(f"{wanted} still waits for its answer, so it has no callback yet", FAILED)
        raise fail(f"{wanted} was {look.of_others()}: no lane and no kept result has it", FAILED)


def timeline(steps: list[CallbackStep], *, named: bool = False) -> list[str]:
    """Return one line per step. Control characters are escaped.

    Each line names its job if the steps belong to several jobs, or if `named` is set.
    """
    several = named or len({(step.tenant, step.job_id) for step in steps}) > 1
    lines = []
    for step in steps:
        said = step.said()
        whose = f"{step.tenant}/{step.job_id}  " if several else ""
        lines.append(harmless(f"{said['at']}  {whose}{_SENTENCES[step.what](said)}"))
    return lines


def _settled(said: dict[str, Any]) -> str:
    where = f"to be called back at {said['origin']}" if said["origin"] else "without a callback"
    return f"settled: {said['outcome']}, {where} (model_results {said['place']})"


def _attempt(said: dict[str, Any]) -> str:
    status = f"status {said['status']}" if said["status"] is not None else "no status"
    outcome = f"failed: {said['error']}, {status}" if said["error"] else f"delivered: {status}"
    line = f"{_attempt_number(said)} {outcome}, {said['duration_ms']} ms, {said['bytes']} bytes"
    return f"{line}; the answer begins: {said['answer']}" if said["answer"] else line


def _attempt_number(said: dict[str, Any]) -> str:
    """Return text such as `attempt 2 of 10`, or only `attempt 12` if the number is above the maximum."""
    number, most = said["attempt"], said["most_attempts"]
    return f"attempt {number} of {most}" if isinstance(number, int) and number <= most else f"attempt {number}"


def _waiting(said: dict[str, Any]) -> str:
    after = f" after {said['attempts']} attempts" if said["attempts"] else ""
    until = f" until {said['until']}" if said["until"] else ""
    waits = f"waits{after}{until} ({said['topic']})"
    if not said["deferred"]:
        return waits
    reason = f": {_DEFERRED_BECAUSE.get(said['reason'], said['reason'])}" if said["reason"] else ""
    return f"{waits}, deferred {said['deferred']} times until {said['last']}{reason}"


_DEFERRED_BECAUSE = {
    "destination_busy": "the endpoint's origin had its share of attempts in flight",
    "rate_limited": "the rate limit of the endpoint or its origin was reached",
    "origin_left_alone": "the endpoint's origin failed too often, or asked for a pause",
    "resources_exhausted": "delivery could open no more connections",
}
"""Maps each code in the header `deferred-reason` to the text that is shown."""


def _given_up(said: dict[str, Any]) -> str:
    return f"given up: {said['reason']}, {said['detail']} (dead letter {said['id']})"


def _redriven(said: dict[str, Any]) -> str:
    return f"dead letter {said['id']} put back"


_SENTENCES = {
    "settled": _settled,
    "attempt": _attempt,
    "waiting": _waiting,
    "dead_letter": _given_up,
    "redriven": _redriven,
}
