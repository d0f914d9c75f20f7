"""`postback results`: the stored results of jobs that were submitted earlier."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.lines import IDS, named_jobs, tenant_of
from cli.shared.output import OrderedLines, refuse_one_file, written
from cli.shared.progress import INTERRUPTED, bars
from cli.shared.settings import fleet_settings
from cli.shared.terminal import harmless
from cli.shared.through_gateway import GATEWAY, KEY, gateway_client, key_file, stored, streamed
from cli.shared.times import HELP, TIME, checked_time
from cli.take.answers import Answers, as_line, as_openai_line
from workers.stage.progress import done_offsets

if TYPE_CHECKING:
    from postback_client import HttpClient
    from producers.receipts import NamedJobs, ReceiptEntry
    from schemas.result import Result
    from schemas.settings import KafkaSettings


def results(
    ids: Annotated[str | None, typer.Option(metavar="FILE|-", help=IDS)] = None,
    wanted: Annotated[list[str] | None, typer.Option("--id", help="A job's id; may be repeated.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar=TIME, help=f"Only results settled at this time or later. {HELP}")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="The jobs' tenant; by default the receipt's tenant, or else `default`.")
    ] = None,
    openai: Annotated[
        bool, typer.Option("--openai", help="Write each result as a line of an OpenAI Batch's output file.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the results to this file at the end, not to standard output as they come."),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(help="With --openai: write failed results to this file, in the format of a Batch's error file."),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Show only how many results have each outcome.")] = False,
    ordered: Annotated[
        bool,
        typer.Option(
            "--ordered",
            help="Write results in the order of the receipt's lines or of the ids, all at the end. A "
            "temporary file keeps the results until the end.",
        ),
    ] = False,
    fail_on_error: Annotated[
        bool, typer.Option("--fail-on-error", help="Exit with 1 also if a job did not succeed or was not accepted.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until each named job has a result.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="With --wait: wait at most this many seconds; by default there is no limit."),
    ] = None,
    gateway: Annotated[str | None, GATEWAY] = None,
    key: Annotated[str | None, KEY] = None,
) -> None:
    """Collect the results that Kafka keeps for seven days, one line for each job.

    Of jobs without a result, the last line says how many still wait in the lanes, and how many were never seen there.
    --wait adds results as they are settled. If a job has several results, as after a redrive, the newest counts.

    Exit status: 0 every named job has a result, whatever its outcome (with --fail-on-error: every job succeeded), 1
    some jobs have none yet, 2 wrong options.
    """
    is_named = ids is not None or bool(wanted)
    _refuse_first(
        (not is_named and since is None, "say which: --ids, --id or --since"),
        (
            gateway is not None and since is not None,
            "--since is for Kafka; with --gateway, name the jobs: --ids or --id",
        ),
        (wait and not is_named, "--wait is for jobs that are named: --ids or --id"),
        (timeout is not None and not wait, "--timeout is for --wait"),
        (ordered and not is_named, "--ordered is for jobs that are named: --ids or --id"),
        (errors is not None and not openai, "--errors is for --openai"),
    )
    refuse_one_file({"--output": output, "--errors": errors}, {"--ids": ids, "--key": key_file(key)})
    named = named_jobs(ids, wanted or [])
    whose, since_ms = tenant_of(named, tenant), checked_time("--since", since)
    kafka = fleet_settings().kafka
    since_ms = named.since_ms if since_ms is None else since_ms
    with (
        written("--output", None if status else output) as out,
        written("--errors", None if status else errors) as apart,
        ExitStack() as stack,
    ):
        line = _line(openai=openai, to_file=out is not None)
        answers = Answers(named.entries if is_named else None, None if status else out or sys.stdout, line, apart)
        if ordered:
            answers.ordered = stack.enter_context(OrderedLines(named.entries))
        try:
            try:
                if gateway is not None:
                    client = stack.enter_context(gateway_client(gateway, key))
                    _through(client, answers, timeout, wait=wait)
                elif wait:
                    _wait(kafka, whose, since_ms or 0, answers, timeout)
                else:
                    _collect(kafka, whose, since_ms, answers)
            finally:
                answers.settle()
        except KeyboardInterrupt:
            say(", ".join([f"stopped; {answers.found}", *answers.summary]))
            raise typer.Exit(INTERRUPTED) from None
    _end(named, answers, "" if gateway or wait else _open_ones(kafka, whose, answers), to_output=status)
    if answers.open or (fail_on_error and (answers.failed or named.refused)):
        raise typer.Exit(FAILED)


def _collect(kafka: KafkaSettings, tenant: str, since_ms: int | None, answers: Answers) -> None:
    """Collect the results that Kafka has now."""
    from producers.results import kept_results
    from producers.scan import Scanner
    from producers.selection import Selection

    with Scanner(kafka) as scanner:
        selection = Selection(tenant=tenant, since_ms=since_ms)
        for result in kept_results(kafka, scanner, selection, answers.entries):
            answers.add(result)


def _wait(kafka: KafkaSettings, tenant: str, since_ms: int, answers: Answers, timeout: float | None) -> None:
    """Write each result as it comes, until every job has one or the time is up."""
    from producers.results import ResultsReader
    from telemetry.clock import Deadline, SystemClock

    deadline = Deadline.after(SystemClock(), timeout) if timeout is not None else None
    to_terminal = answers.out is not None and answers.out.isatty()
    with ResultsReader(kafka, since_ms) as reader, bars(hidden=to_terminal) as progress:
        answers.follow((answers.take(came, tenant) for came in reader.follow(deadline, since_ms)), progress)


def _open_ones(kafka: KafkaSettings, tenant: str, answers: Answers) -> str:
    """Return how many of the jobs without a result wait in the lanes, and how many do not; empty if none is open.

    A command that waited for results does without: its time is up, and a frozen broker would hold it.
    """
    from cli.operations.unanswered import look_into_lanes
    from producers.scan import Scanner

    wanted = {job_id for job_id in answers.entries or () if job_id not in answers.outcomes}
    if not wanted:
        return ""
    with Scanner(kafka) as scanner:
        look = look_into_lanes(kafka, scanner, done_offsets, wanted, tenant)
    others = len(wanted) - len(look.waiting)
    said = [f"{len(look.waiting)} still waiting"] if look.waiting else []
    return f" ({', '.join([*said, *([f'{others} {look.of_others()}'] if others else [])])})"


def _through(client: HttpClient, answers: Answers, timeout: float | None, *, wait: bool) -> None:
    """Write the results that a gateway has, and wait for the others if asked to."""
    wanted = list(answers.entries or ())
    to_terminal = answers.out is not None and answers.out.isatty()
    found = streamed(client, wanted, timeout) if wait else stored(client, wanted)
    with bars(hidden=to_terminal) as progress:
        answers.follow(map(answers.add, found), progress)


def _refuse_first(*rules: tuple[bool, str]) -> None:
    """End the command with the text of the first rule that is broken."""
    for broken, text in rules:
        if broken:
            raise fail(text, BAD_INPUT)


def _line(*, openai: bool, to_file: bool) -> Callable[[Result, ReceiptEntry | None], str]:
    """Return a function that formats a result as JSON.

    For a terminal, the function escapes control characters as JSON does.
    """
    line = as_openai_line if openai else as_line
    if to_file or not sys.stdout.isatty():
        return line
    return lambda result, entry: harmless(line(result, entry))


def _end(named: NamedJobs, answers: Answers, open_ones: str, *, to_output: bool) -> None:
    """Print the number of results. `open_ones` says where the jobs without a result are."""
    said = ", ".join([answers.found, *answers.summary]) + open_ones
    if named.refused:
        said += f"; {named.refused} more were not accepted"
    if to_output:
        typer.echo(said)
    else:
        answers.tell()
        say(said)
