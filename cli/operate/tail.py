"""`postback tail`: results, callback attempts and dead letters as they come, one line an event."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from cli.operate.endpoint_deliveries import timeline
from cli.shared.settings import checked_tenant, fleet_settings
from cli.shared.terminal import harmless
from cli.shared.times import HELP, TIME, checked_time
from schemas.outcome import Outcome

if TYPE_CHECKING:
    from cli.operations.deliveries import CallbackStep


def tail(
    tenant: Annotated[str | None, typer.Option(help="Only events of this tenant.")] = None,
    model: Annotated[str | None, typer.Option(help="Only results of this model, and their callbacks.")] = None,
    outcome: Annotated[
        Outcome | None, typer.Option(help="Only results with this outcome, and their callbacks.")
    ] = None,
    job: Annotated[str, typer.Option(metavar="PREFIX", help="Only jobs whose id begins with this text.")] = "",
    since: Annotated[str | None, typer.Option(metavar=TIME, help=f"Begin at this time, not now. {HELP}")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="End after this number of events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
) -> None:
    """Follow results, callback attempts and dead letters as they are written, until Ctrl-C.

    The command reads Kafka and joins no group, so it takes nothing from the fleet. Prompts and answers are not shown.
    """
    from cli.operations.tail import EventFilter, Tail

    since_ms = checked_time("--since", since)
    wanted = EventFilter(checked_tenant(tenant) if tenant is not None else None, job, model, outcome)
    with suppress(KeyboardInterrupt), Tail(fleet_settings().kafka, wanted, since_ms) as events:
        left = limit
        while left is None or left > 0:
            shown = events.poll()[:left]
            left = left - len(shown) if left is not None else None
            for step in shown:
                typer.echo(_line(step, as_json=as_json))


def _line(step: CallbackStep, *, as_json: bool) -> str:
    if as_json:
        return harmless(json.dumps(step.said()))
    return timeline([step], named=True)[0]
