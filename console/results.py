"""`postback results`: the results of jobs that somebody submitted and walked away from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.answers import Answers, as_line, as_openai_line
from console.errors import BAD_INPUT, FAILED, fail, quiet_clients, say, telling
from console.lines import IDS, named_jobs, tenant_of
from console.output import begin_anew, written
from console.settings import fleet_settings
from console.terminal import harmless
from console.times import HELP, TIME, checked_time

if TYPE_CHECKING:
    from producers.receipts import Entry, NamedJobs
    from schemas.result import Result


def results(
    ids: Annotated[str | None, typer.Option(metavar="FILE|-", help=IDS)] = None,
    wanted: Annotated[list[str] | None, typer.Option("--id", help="A job's id; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option(metavar=TIME, help=f"Settled then or later. {HELP}")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose; else as the receipt says, or else of the tenant default.")
    ] = None,
    openai: Annotated[bool, typer.Option("--openai", help="As lines of an OpenAI Batch's output file.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write them here, not to standard output.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Only say how many there are, by outcome.")] = False,
) -> None:
    """Collect the results that Kafka keeps, one a line: seven days of them.

    A job that was submitted twice under one id has two. Exit status: 0 every job that was named has a result, 1 some
    have none yet, 2 asked wrongly.
    """
    quiet_clients()
    from producers.errors import ProducerError
    from producers.replay import Selection
    from producers.results import kept_results
    from producers.scan import Scanner

    if ids is None and not wanted and since is None:
        raise fail("say which: --ids, --id or --since", BAD_INPUT)
    named = named_jobs(ids, wanted or [])
    whose, since_ms = tenant_of(named, tenant), checked_time("--since", since)
    kafka = fleet_settings().kafka
    with telling(ProducerError), written("--output", None if status else output) as out, Scanner(kafka) as scanner:
        entries = named.entries if ids is not None or wanted else None
        answers = Answers(entries, None if status else out or sys.stdout, _line(openai=openai, to_file=out is not None))
        selection = Selection(tenant=whose, since_ms=named.since_ms if since_ms is None else since_ms)
        found = kept_results(kafka, scanner, selection)
        begin_anew(out)
        for result in found:
            answers.add(result)
    _end(named, answers, to_output=status)


def _line(*, openai: bool, to_file: bool) -> Callable[[Result, Entry | None], str]:
    """How a result is written. A terminal would obey what is in a model's text; its escapes are JSON all the same."""
    line = as_openai_line if openai else as_line
    if to_file or not sys.stdout.isatty():
        return line
    return lambda result, entry: harmless(line(result, entry))


def _end(named: NamedJobs, answers: Answers, *, to_output: bool) -> None:
    """Say how many there are, and end with 1 where some are missing."""
    said = ", ".join([answers.found, *answers.summary])
    if named.refused:
        said += f"; {named.refused} more were not accepted"
    if to_output:
        typer.echo(said)
    else:
        answers.tell()
        say(said)
    if answers.open:
        raise typer.Exit(FAILED)
