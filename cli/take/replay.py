"""`postback replay`: sends settled results to their callbacks again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.errors import BAD_INPUT, fail, say
from cli.shared.putting_back import Asked, DryRun, Yes, end
from cli.shared.settings import checked_endpoint, checked_tenant, fleet_settings
from cli.shared.times import HELP, TIME, checked_time

if TYPE_CHECKING:
    from cli.operations.put_back import PutBack
    from cli.operations.replay import Counts
    from producers.scan import StoredPlace
    from producers.selection import Selection
    from schemas.settings import KafkaSettings

_SHOWN = 10
"""The report names at most this many origins, and counts the others."""
_LEFT = {
    "delivered": "were delivered",
    "unknown": "are older than all records of attempts: without --undelivered they are called back too",
    "waiting": "wait for an attempt, which is left to delivery: --waiting calls them back at once",
    "endpoint_disabled": "have an endpoint that is disabled: `postback endpoints enable` comes first",
    "no_callback": "cannot be called back: they have no callback URL, or Postback did not write them",
}
"""The reasons why a matching result is not sent, and their texts in the order of the report."""


def replay(
    tenant: Annotated[str | None, typer.Option(help="Only results of this tenant.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Only results with this callback URL, or with any URL of this origin.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar=TIME, help=f"Only results settled at this time or later. {HELP}")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar=TIME, help="Only results settled before this time.")] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="The id of a job or a webhook; may be repeated.")
    ] = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(
            "--offset", metavar="P:N", help="A result's partition and offset in model_results; may be repeated."
        ),
    ] = None,
    undelivered: Annotated[
        bool, typer.Option("--undelivered", help="Only results that are neither delivered nor still being tried.")
    ] = False,
    waiting: Annotated[
        bool,
        typer.Option(
            "--waiting",
            help="With --undelivered: also send results that wait for an attempt, which still takes place when due.",
        ),
    ] = False,
    dry_run: DryRun = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Send at most this many results, to try a few first. Without --undelivered, another run repeats them.",
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=1, max=100_000, help="Send at most this many results per second.")] = 200.0,
    yes: Yes = False,
) -> None:
    """Send results to their callbacks again. The webhook-id stays, so that a consumer recognises events that it has.

    Exit status: 0 done, 1 a named result cannot be sent or is missing, or the answer at the terminal was no, 2 wrong
    options.
    """
    from cli.operations.replay import Replay
    from producers.scan import Scanner
    from producers.selection import Selection
    from telemetry.clock import SystemClock

    if not (tenant or endpoint or ids or offsets):
        raise fail("say which results: --tenant, --endpoint, --id or --offset", BAD_INPUT)
    if waiting and not undelivered:
        raise fail(
            "--waiting: needs --undelivered; without --undelivered all results that match are called back", BAD_INPUT
        )
    selection = Selection(
        tenant=checked_tenant(tenant) if tenant is not None else None,
        endpoint=checked_endpoint(endpoint),
        ids=frozenset(ids or ()),
        since_ms=checked_time("--since", since),
        until_ms=checked_time("--until", until),
        places=frozenset(_place(text) for text in offsets or ()),
        undelivered=undelivered,
        waiting=waiting,
    )
    kafka, clock = fleet_settings().kafka, SystemClock()
    with Scanner(kafka, clock) as scanner:
        chosen = Replay(kafka, scanner, selection, clock)

        def act(told: Callable[[int], None]) -> Counts:
            # The producer is made only after the answer, because a new producer with the same identity fences a run
            # that is under way.
            with _producer(kafka, marking=undelivered) as back:
                return chosen.run(back, rate, told, limit=limit)

        counts, _ = Asked(selection.tenant, limit, dry_run, yes).put_back(
            chosen.count(),
            act,
            report=partial(_report, selection),
            question="Call these {} back again?",
            again="another run goes on with the rest" if undelivered else "another run sends them again",
            after="; delivery takes them up from its smallest tier",
        )
    held = [f"{name} ({why})" for name, why in sorted(counts.held_names.items()) if why != "delivered"]
    missing = [*sorted(selection.ids - counts.ids), *map(str, sorted(selection.places - counts.places))]
    end(("not called back", held), ("no kept result that fits", missing))


def _place(text: str) -> StoredPlace:
    from producers.scan import StoredPlace

    place = StoredPlace.parse(text)
    if place is None:
        raise fail("--offset: a partition and an offset of model_results, as in 3:1024", BAD_INPUT)
    return place


def _producer(kafka: KafkaSettings, *, marking: bool) -> PutBack:
    """Make a producer. Its identity is new, so that two people can replay for different tenants at once.

    With `marking`, it has the same identity as every redrive, since redrives mark dead letters too; a later run then
    fences an earlier one.
    """
    import secrets

    from cli.operations.dead_letters import REDRIVE
    from cli.operations.put_back import PutBack

    return PutBack(kafka, REDRIVE if marking else f"replay.{secrets.token_hex(6)}")


def _report(selection: Selection, counts: Counts) -> None:
    what = "were not delivered" if selection.undelivered else "have a callback"
    say(f"{counts.count} results match and {what}")
    for origin, count in counts.origins.most_common(_SHOWN):
        say(f"  {count} to {origin}")
    if len(counts.origins) > _SHOWN:
        say(f"  and {len(counts.origins) - _SHOWN} more origins")
    if counts.letters:
        say(f"{counts.letters} dead letters belong to these results, and are put back with them")
    for obstacle, said in _LEFT.items():
        if count := counts.held[obstacle]:
            say(f"{count} match too and {said}")
