"""`postback results`: the results of jobs that somebody submitted and walked away from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from console.answers import Answers, as_line, as_openai_line
from console.errors import BAD_INPUT, FAILED, fail, quiet_clients, say, telling
from console.lines import IDS, named_jobs, tenant_of
from console.output import begin_anew, written
from console.progress import INTERRUPTED, bars
from console.settings import fleet_settings
from console.terminal import harmless
from console.times import HELP, TIME, checked_time

if TYPE_CHECKING:
    from producers.receipts import NamedJobs, ReceiptEntry
    from schemas.result import Result
    from schemas.settings import KafkaSettings


Files = tuple[TextIO | None, ...]
"""Those to be written, which are emptied once results can be read."""


@dataclass(frozen=True, slots=True)
class ResultsRequest:
    """Whose results are looked for, and where."""

    kafka: KafkaSettings
    tenant: str
    since_ms: int | None
    """Settled then or later, Unix milliseconds."""


def results(
    ids: Annotated[str | None, typer.Option(metavar="FILE|-", help=IDS)] = None,
    wanted: Annotated[list[str] | None, typer.Option("--id", help="A job's id; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option(metavar=TIME, help=f"Settled then or later. {HELP}")] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Whose; else as the receipt says, or else of the tenant default.")
    ] = None,
    openai: Annotated[bool, typer.Option("--openai", help="As lines of an OpenAI Batch's output file.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write them here, not to standard output.")] = None,
    errors: Annotated[
        Path | None, typer.Option(help="With --openai: write here what did not succeed, as into a Batch's error file.")
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Only say how many there are, by outcome.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until each job that is named has its result, and end then.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="With --wait: seconds to wait; else until all are there.")
    ] = None,
) -> None:
    """Collect the results that Kafka keeps, one a line and a job: seven days of them.

    With --wait those too that are settled from now on, each as it comes. Where a job has several results, as after a
    redrive, the newest counts. Exit status: 0 every job that was named has a result, 1 some have none yet, 2 asked
    wrongly.
    """
    quiet_clients()
    from producers.errors import ProducerError

    is_named = ids is not None or bool(wanted)
    if not is_named and since is None:
        raise fail("say which: --ids, --id or --since", BAD_INPUT)
    if wait and not is_named:
        raise fail("--wait is for jobs that are named: --ids or --id", BAD_INPUT)
    if timeout is not None and not wait:
        raise fail("--timeout is for --wait", BAD_INPUT)
    if errors is not None and not openai:
        raise fail("--errors is for --openai", BAD_INPUT)
    if errors is not None and output is not None and errors.resolve() == output.resolve():
        raise fail("--errors: is the file of --output; without it all lines go there", BAD_INPUT)
    named = named_jobs(ids, wanted or [])
    whose, since_ms = tenant_of(named, tenant), checked_time("--since", since)
    kafka = fleet_settings().kafka
    asked = ResultsRequest(kafka, whose, named.since_ms if since_ms is None else since_ms)
    with (
        telling(ProducerError),
        written("--output", None if status else output) as out,
        written("--errors", None if status else errors) as apart,
    ):
        line = _line(openai=openai, to_file=out is not None)
        answers = Answers(named.entries if is_named else None, None if status else out or sys.stdout, line, apart)
        try:
            if wait:
                _wait(asked, answers, (out, apart), timeout)
            else:
                _collect(asked, answers, (out, apart))
            answers.settle()
        except KeyboardInterrupt:
            answers.settle()
            say(", ".join([f"stopped; {answers.found}", *answers.summary]))
            raise typer.Exit(INTERRUPTED) from None
    _end(named, answers, to_output=status)


def _collect(asked: ResultsRequest, answers: Answers, files: Files) -> None:
    """What is there now."""
    from producers.results import kept_results
    from producers.scan import Scanner
    from producers.selection import Selection

    with Scanner(asked.kafka) as scanner:
        selection = Selection(tenant=asked.tenant, since_ms=asked.since_ms)
        found = kept_results(asked.kafka, scanner, selection, answers.entries)
        for out in files:
            begin_anew(out)
        for result in found:
            answers.add(result)


def _wait(asked: ResultsRequest, answers: Answers, files: Files, timeout: float | None) -> None:
    """Until each job has its result, or the time is up; each is written as it comes."""
    from producers.results import ResultsReader
    from telemetry.clock import Deadline, SystemClock

    since_ms = asked.since_ms or 0
    deadline = Deadline.after(SystemClock(), timeout) if timeout is not None else None
    to_terminal = answers.out is not None and answers.out.isatty()
    with ResultsReader(asked.kafka, since_ms) as reader, bars(hidden=to_terminal) as progress:
        for out in files:
            begin_anew(out)
        bar = progress.add_task("answered", total=answers.open)
        for came in reader.follow(deadline, since_ms):
            progress.advance(bar, answers.take(came, asked.tenant))
            answers.flush()
            if not answers.open:
                return


def _line(*, openai: bool, to_file: bool) -> Callable[[Result, ReceiptEntry | None], str]:
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
