"""`postback dead-letters`: lists, shows and puts back jobs and callbacks that were given up."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.audited import audited
from cli.shared.errors import FAILED, fail, say
from cli.shared.putting_back import Asked, DryRun, Yes, end
from cli.shared.settings import checked_endpoint, checked_tenant, fleet_settings
from cli.shared.terminal import harmless
from cli.shared.times import HELP, TIME, checked_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cli.operations.dead_letters import DeadLetters, Letter, LetterCounts, LetterFilter
    from cli.operations.put_back import PutBack

app = typer.Typer(no_args_is_help=True, help="Look at jobs and callbacks that were given up, and put them back.")

_OBSTACLES = {
    "expired": "older than 30 days, after which the marks of earlier redrives may be gone",
    "endpoint_disabled": "their endpoint is disabled, and `postback endpoints enable` comes first",
    "too_large": "too large to be kept whole, or to be taken again",
    "empty": "without content",
    "lane_gone": "their lane is gone, and `postback topics create --engine LANE` comes first",
    "cancelled": "their jobs are cancelled, and `postback cancel --undo ID` comes first",
    "source_unknown": "from a topic that has neither jobs nor callbacks",
}

ROWS_AT_ONCE = 500
"""A table has at most this many rows. All rows are read before the first is shown, because the widest cell sets a
column's width.
"""
_MOST_SHOWN_CHARACTERS = 300
"""The largest number of characters shown of one text; `postback dead-letters show` shows the whole text."""
_TO_THE_MINUTE = len("2026-11-27T07:33")

Reasons = Annotated[
    list[str] | None, typer.Option("--reason", help="Only letters with this reason code; may be repeated.")
]
Tenant = Annotated[str | None, typer.Option(help="Only letters of this tenant.")]
Endpoint = Annotated[
    str | None, typer.Option(help="Only letters with this callback URL, or with any URL of this origin.")
]
Ids = Annotated[
    list[str] | None,
    typer.Option("--id", help="The id of a letter, job or webhook; P:N always means a letter. May be repeated."),
]
Since = Annotated[str | None, typer.Option(metavar=TIME, help=f"Only letters given up at this time or later. {HELP}")]
Until = Annotated[str | None, typer.Option(metavar=TIME, help="Only letters given up before this time.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command("list")
def list_letters(
    reasons: Reasons = None,
    tenant: Tenant = None,
    endpoint: Endpoint = None,
    ids: Ids = None,
    since: Since = None,
    until: Until = None,
    redriven_too: Annotated[bool, typer.Option("--all", help="Also list letters that were put back.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs and callbacks that were given up and not put back since.

    A terminal shows a table, with the reasons counted at the end; a pipe gets one line per letter.
    """
    wanted = _filter(reasons, tenant, endpoint, ids, since, until, redriven_too=redriven_too)
    with opened_letters() as found:
        summaries = (letter.summary() for letter in found.letters(wanted))
        if sys.stdout.isatty() and not as_json:
            return _show_table(summaries)
        count = _write_array(summaries) if as_json else write_lines(summaries)
    say(f"{count} dead letters")
    return None


@app.command()
def show(
    letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="The id of a letter, job or webhook; P:N always means a letter.")
    ],
    _as_json: Annotated[bool, typer.Option("--json", help="Print JSON. This is the default.")] = False,
) -> None:
    """Show a letter with its headers and content, as JSON."""
    wanted = _filter(ids=[letter_id], redriven_too=True)
    with opened_letters() as found:
        count = _write_array(whole_letter(letter) for letter in found.letters(wanted))
    if not count:
        raise fail(f"no dead letter has the id {letter_id}", FAILED)


@app.command()
def redrive(
    some: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Ids of letters, jobs or webhooks, in the same way as with --id."),
    ] = None,
    reasons: Reasons = None,
    tenant: Tenant = None,
    endpoint: Endpoint = None,
    ids: Ids = None,
    since: Since = None,
    until: Until = None,
    as_new_events: Annotated[
        bool, typer.Option("--as-new-events", help="Give the next result of each job a new webhook id.")
    ] = False,
    dry_run: DryRun = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Put back at most this many letters, to try a few first.")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=1, max=100_000, help="Put back at most this many letters per second.")
    ] = 200.0,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put dead letters back: jobs into their lane, callbacks into delivery, with their ids unchanged.

    Each letter is put back only once, even if the command is run again. Exit status: 0 done, 1 a named letter cannot be
    put back or is missing, or the answer at the terminal was no, 2 wrong options.
    """
    wanted = _filter(reasons, tenant, endpoint, [*(some or ()), *(ids or ())], since, until)
    with opened_letters() as found:

        def act(told: Callable[[int], None]) -> LetterCounts:
            # The producer is made only after the answer, because a new producer fences a redrive that is under way.
            with audited("redriveDeadLetter", "change", tenant, sorted(wanted.ids)), _producer() as back:
                return found.redrive(wanted, back, rate, told, as_new_events=as_new_events, limit=limit)

        tally, done = Asked(wanted.tenant, limit, dry_run, yes).put_back(
            found.tally(wanted),
            act,
            report=report_counts,
            question="Put these {} back?",
            again="another run goes on with the rest",
        )
    if as_json:
        counted = [{"kind": kind, "reason": reason, "count": n} for (kind, reason), n in sorted(tally.open.items())]
        typer.echo(json.dumps({"matching": counted, "held": dict(tally.held), "redriven": done, "dry_run": dry_run}))
    held = [f"{name} ({tally.held_ids[name]})" for name in sorted(tally.held_ids)]
    end(("not put back", held), ("no dead letter is left to put back for", sorted(wanted.ids - tally.ids)))


def _filter(
    reasons: list[str] | None = None,
    tenant: str | None = None,
    endpoint: str | None = None,
    ids: list[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    *,
    redriven_too: bool = False,
) -> LetterFilter:
    from cli.operations.dead_letters import LetterFilter

    return LetterFilter(
        reasons=frozenset(reasons or ()),
        tenant=checked_tenant(tenant) if tenant is not None else None,
        endpoint=checked_endpoint(endpoint),
        ids=frozenset(ids or ()),
        since_ms=checked_time("--since", since),
        until_ms=checked_time("--until", until),
        redriven_too=redriven_too,
    )


@contextmanager
def opened_letters() -> Iterator[DeadLetters]:
    """Yield the fleet's dead letters. Raises ProducerError."""
    from cli.operations.dead_letters import DeadLetters
    from producers.scan import Scanner
    from telemetry.clock import SystemClock

    kafka, clock = fleet_settings().kafka, SystemClock()
    with Scanner(kafka, clock) as scanner:
        yield DeadLetters(kafka, scanner, clock)


def _producer() -> PutBack:
    from cli.operations.dead_letters import REDRIVE
    from cli.operations.put_back import PutBack

    return PutBack(fleet_settings().kafka, REDRIVE)


def report_counts(tally: LetterCounts) -> None:
    """Print how many letters a redrive would put back, by reason, and how many it would not, by obstacle."""
    say(f"{tally.count} dead letters can be put back")
    for (kind, reason), count in tally.open.most_common():
        say(f"  {count} {kind}: {reason}")
    for obstacle, count in tally.held.most_common():
        say(f"{count} cannot be put back: {_OBSTACLES[obstacle]}")


def _show_table(summaries: Iterable[dict[str, Any]]) -> None:
    from rich.console import Console

    count, reasons = write_table(Console(), summaries)
    told = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    say(f"{count} dead letters{f': {told}' if told else ''}")


def write_table(console: Console, summaries: Iterable[dict[str, Any]]) -> tuple[int, Counter[str]]:
    """Write the letters in tables of bounded length. Return the number of letters, in total and by reason."""
    count, reasons, left = 0, Counter[str](), iter(summaries)
    while rows := list(islice(left, ROWS_AT_ONCE)):
        console.print(_table(rows))
        count += len(rows)
        reasons.update(str(row["reason"]) for row in rows)
    return count, reasons


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("id", "given up", "kind"):
        table.add_column(title, no_wrap=True)
    table.add_column("reason", overflow="fold", ratio=1)
    table.add_column("whose", overflow="fold", ratio=1)
    for row in rows:
        cells = (row["id"], str(row["at"])[:_TO_THE_MINUTE].replace("T", " "), row["kind"], _reason(row), _whose(row))
        table.add_row(*(Text(cell) for cell in cells), style="dim" if row["redriven_at"] else None)
    return table


def _reason(row: dict[str, Any]) -> str:
    """Return the reason's code, the number of tries and the state, and on the next line the detail."""
    tries = f", {row['attempts']} tries" if row["attempts"] else ""
    held = f", held: {row['obstacle']}" if row["obstacle"] else ""
    state = ", put back" if row["redriven_at"] else held
    return f"{_shown(row['reason'])}{tries}{state}" + (f"\n{_shown(row['detail'])}" if row["detail"] else "")


def _whose(row: dict[str, Any]) -> str:
    """Return the tenant and the job, and on the next line the origin of the callback."""
    job = _shown(f"{row['tenant']}/{row['job_id'] or '-'}")
    return f"{job}\n{_shown(row['origin'])}" if row["origin"] else job


def _shown(text: str) -> str:
    return harmless(text[:_MOST_SHOWN_CHARACTERS])


def write_lines(summaries: Iterable[dict[str, Any]]) -> int:
    """Write one line per letter, with two spaces between fields. Return the number of letters."""
    count = 0
    for one in summaries:
        state = ("redriven",) if one["redriven_at"] else ()
        said = (one["id"], one["at"], one["kind"], one["reason"], one["tenant"], one["job_id"], one["origin"], *state)
        # A header may contain anything, such as escape sequences.
        typer.echo(harmless("  ".join("-" if value is None else str(value) for value in said)))
        count += 1
    return count


def _write_array(values: Iterable[dict[str, Any]]) -> int:
    """Write the elements as a JSON array, one per line, each as soon as it is read. Return the number of elements."""
    count = 0
    for value in values:
        typer.echo(("[\n" if count == 0 else ",\n") + json.dumps(value), nl=False)
        count += 1
    typer.echo("\n]" if count else "[]")
    return count


def whole_letter(letter: Letter) -> dict[str, Any]:
    """Return a letter with its headers and content. Bytes that are not UTF-8 are escaped."""
    headers = [[name, (value or b"").decode("utf-8", "backslashreplace")] for name, value in letter.record.headers]
    return {**letter.summary(), "headers": headers, "value": _content(letter.record.value)}


def _content(value: bytes | None) -> Any:
    """Return the content as a JSON value if it is JSON, else as text."""
    from pydantic_core import from_json

    if value is None:
        return None
    try:
        return from_json(value)  # this parser limits the depth of nesting, so that json.dumps can write the value
    except ValueError:
        return value.decode("utf-8", "backslashreplace")
