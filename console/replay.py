"""`postback replay`: results that were settled long ago, called back again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from console.confirm import confirmed
from console.errors import BAD_INPUT, FAILED, fail, quiet_clients, say, telling
from console.progress import INTERRUPTED, counting
from console.settings import checked_tenant, fleet_settings
from console.times import HELP, TIME, checked_time

if TYPE_CHECKING:
    from producers.put_back import PutBack
    from producers.replay import Counts, Replay, Selection
    from producers.scan import Place
    from schemas.settings import KafkaSettings

_SHOWN = 10
"""Origins and ids that are spelled out."""
_RUN_ANEW = {True: "another run goes on with the rest", False: "called back again if this is run anew"}
_LEFT = {
    "delivered": "were delivered",
    "unknown": "are older than the attempts that are kept: without --undelivered they are called back too",
    "waiting": "wait for an attempt, which is left to delivery: --waiting calls them back at once",
}


def replay(
    tenant: Annotated[str | None, typer.Option(help="Whose results.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="The callback URL; without a path, everything at that origin.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar=TIME, help=f"Settled then or later. {HELP}")] = None,
    until: Annotated[str | None, typer.Option(metavar=TIME, help="Settled before then.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="A job's or a webhook's id; may be repeated.")] = None,
    offsets: Annotated[
        list[str] | None, typer.Option("--offset", metavar="P:N", help="A place in model_results; may be repeated.")
    ] = None,
    undelivered: Annotated[
        bool, typer.Option("--undelivered", help="Only what was not delivered, and is not on its way by itself.")
    ] = False,
    waiting: Annotated[
        bool,
        typer.Option("--waiting", help="With --undelivered: also what waits, at once; it comes again when it is due."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and change nothing.")] = False,
    rate: Annotated[float, typer.Option(min=1, max=100_000, help="At most so many a second.")] = 200.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Call results back again, under the same webhook-id, so that a consumer knows what it has already.

    Exit status: 0 done, 1 nothing was found of an id or a place that was named, or the answer at the terminal was no,
    2 asked wrongly.
    """
    quiet_clients()
    from producers.errors import ProducerError
    from producers.replay import Replay, Selection
    from producers.scan import Scanner
    from telemetry.clock import SystemClock

    if tenant is None and endpoint is None:
        raise fail("say whose results: --tenant or --endpoint", BAD_INPUT)
    if waiting and not undelivered:
        raise fail("--waiting: goes with --undelivered; without it, all results that match are called back", BAD_INPUT)
    selection = Selection(
        tenant=checked_tenant(tenant) if tenant is not None else None,
        endpoint=endpoint,
        ids=frozenset(ids or ()),
        since_ms=checked_time("--since", since),
        until_ms=checked_time("--until", until),
        places=frozenset(_place(text) for text in offsets or ()),
        undelivered=undelivered,
        waiting=waiting,
    )
    kafka, clock = fleet_settings().kafka, SystemClock()
    with telling(ProducerError), ExitStack() as stack:
        # Its producer comes first: it ends what an earlier run left open, so that dead letters' marks are complete.
        back = None if dry_run else stack.enter_context(_producer(kafka, marking=undelivered))
        chosen = Replay(kafka, stack.enter_context(Scanner(kafka, clock)), selection, clock)
        counts = chosen.count()
        _report(counts, selection)
        if back is not None and counts.matching:
            confirmed(f"Call these {counts.matching} back again?", yes=yes)
            _run(chosen, back, rate, counts.matching, undelivered=undelivered)
    _end(selection, counts)


def _place(text: str) -> Place:
    from producers.scan import Place

    place = Place.parse(text)
    if place is None:
        raise fail("--offset: a partition and an offset of model_results, as in 3:1024", BAD_INPUT)
    return place


def _producer(kafka: KafkaSettings, *, marking: bool) -> PutBack:
    """With the identity of redrives where dead letters are marked, so that of the two the later one takes over.

    Else with one of its own: two people may replay at once, for different tenants.
    """
    import secrets

    from producers.dead_letters import REDRIVE
    from producers.put_back import PutBack

    return PutBack(kafka, REDRIVE if marking else f"replay.{secrets.token_hex(6)}")


def _report(counts: Counts, selection: Selection) -> None:
    what = "were not delivered" if selection.undelivered else "have a callback"
    say(f"{counts.matching} results match and {what}")
    for origin, count in counts.origins.most_common(_SHOWN):
        say(f"  {count} to {origin}")
    if len(counts.origins) > _SHOWN:
        say(f"  and {len(counts.origins) - _SHOWN} origins more")
    if counts.letters:
        say(f"{counts.letters} dead letters are of these, and are put back with them")
    for standing, count in sorted(counts.others.items()):
        say(f"{count} match too and {_LEFT[standing]}")
    if counts.disabled:
        say(f"{counts.disabled} match too, whose endpoint is disabled: `postback endpoints enable` comes first")
    if counts.stored_only:
        say(
            f"{counts.stored_only} match too and cannot be called back: they have no callback, or are no result of ours"
        )


def _run(chosen: Replay, back: PutBack, rate: float, expected: int, *, undelivered: bool) -> None:
    with counting("put back", expected) as told:
        try:
            done = chosen.run(back, rate, told)
        except KeyboardInterrupt:
            say(f"stopped; {told.done} of {expected} are put back, and {_RUN_ANEW[undelivered]}")
            raise typer.Exit(INTERRUPTED) from None
    say(f"{done} of {expected} put back; delivery takes them up from its smallest tier")


def _end(selection: Selection, counts: Counts) -> None:
    missing = [*sorted(selection.ids - counts.ids), *map(str, sorted(selection.places - counts.places))]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise fail(f"no kept result that fits: {', '.join(missing[:_SHOWN])}{more}", FAILED)
