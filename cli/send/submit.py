"""`postback submit`: sends a file of jobs into the fleet, and waits for their results with --wait."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from cli.send.job_file import checked_jobs, lines_counted
from cli.send.job_warnings import warn_of_refused, warn_of_unserved
from cli.shared import through_gateway
from cli.shared.errors import BAD_INPUT, FAILED, fail, refusing, say
from cli.shared.failures import SHOWN, Failures
from cli.shared.output import refuse_one_file, written
from cli.shared.progress import INTERRUPTED, bars
from cli.shared.settings import checked_tenant, fleet_settings
from cli.shared.through_gateway import GATEWAY, KEY, gateway_client
from cli.shared.times import TIME
from cli.take.answers import Answers, as_line, as_text

if TYPE_CHECKING:
    from rich.progress import Progress

    from postback_client import HttpClient
    from producers.jsonl import JobFile
    from producers.receipts import Receipt, ReceiptEntry
    from producers.results import ResultsReader
    from schemas.job import Job
    from schemas.settings import KafkaSettings
    from schemas.topics import Lane
    from schemas.trust import TrustSecrets


BULK_FROM = 1_000
"""Files with more jobs use the bulk lane, unless an option says otherwise, so as not to delay interactive jobs."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command line's options, checked."""

    kafka: KafkaSettings
    receipt: Receipt
    tenant: str
    lane: Lane
    kept_in: Path | None
    """The file of the receipt."""
    unnamed: frozenset[int]
    """Indexes of the jobs that have no id of their own in the file."""
    skipped: int
    """The number of invalid lines that were left out."""
    trust: TrustSecrets | None
    """The secrets that make each job's `tenant-signature`, if the fleet has any."""
    gateway: HttpClient | None = None
    """The gateway that takes the jobs, if they do not go to Kafka."""

    def keep(self, fix: str) -> None:
        """Write the receipt to its file, if it has one. `fix` says how to go on if the file cannot be written."""
        from producers.receipts import write_receipt

        if self.kept_in is None:
            return
        try:
            write_receipt(self.kept_in, self.receipt.entries)
        except OSError as error:
            raise fail(f"--receipt {self.kept_in}: {error.strerror}; {fix}", BAD_INPUT) from None


def submit(
    file: Annotated[str, typer.Argument(help="JSON Lines, one job a line; - is standard input.", metavar="FILE|-")],
    callback_url: Annotated[str | None, typer.Option(help="The callback URL for jobs that name none.")] = None,
    tenant: Annotated[str, typer.Option(help="The tenant that the jobs belong to.")] = "default",
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|any", help="Ask for this model in every line; `any` takes whichever model answers."),
    ] = None,
    not_before: Annotated[
        str | None,
        typer.Option(
            metavar=TIME, help="Start jobs that say nothing else at this time or later: ISO 8601, 2026-03-01T22:00Z."
        ),
    ] = None,
    bulk: Annotated[
        bool | None,
        typer.Option(
            "--bulk/--no-bulk",
            help="Use the bulk lane, where jobs wait behind all others. "
            f"Files of over {BULK_FROM:,} jobs use this lane unless --no-bulk is given.",
        ),
    ] = None,
    spare: Annotated[
        bool, typer.Option("--spare", help="Use the spare lane, whose jobs run only while no other job waits.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Wait for the results, and show them on a terminal. Exit status 0 then means that all jobs succeeded.",
        ),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="With --wait: wait at most this many seconds; by default there is no limit."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="With --wait: write the results to this file, one result a line.")
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            help="Note each line's job in this file. "
            "If the file exists, send only the jobs that are not noted as accepted."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the lines, and the receipt if there is one; send nothing.")
    ] = False,
    skip_invalid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Send the valid lines, and write the invalid ones to this file, each with its reasons."
        ),
    ] = None,
    gateway: Annotated[str | None, GATEWAY] = None,
    key: Annotated[str | None, KEY] = None,
) -> None:
    """Submit jobs from a file: each line is a job, or a line of an OpenAI Batch.

    All lines are checked before the first is sent; an invalid one stops all, unless --skip-invalid leaves it out. The
    ids of the accepted jobs go to standard output, one per line, unless standard output is a terminal.

    Exit status: 0 all jobs accepted (with --wait: all succeeded; with --check: all can be sent), 1 some jobs not, or
    some lines skipped, 2 bad input and nothing sent.
    """
    from producers.receipts import look_up
    from telemetry.traces import exporting

    for option, value in (("--timeout", timeout), ("--results", results)):
        if value is not None and not wait:
            raise fail(f"{option} is for --wait, and nothing was sent", BAD_INPUT)
    if check and wait:
        raise fail("--check sends nothing, so there is nothing to --wait for", BAD_INPUT)
    outputs = {"--receipt": receipt, "--results": results, "--skip-invalid": skip_invalid}
    refuse_one_file(outputs, {"the jobs": file, "--key": through_gateway.key_file(key)})
    fleet, tenant = fleet_settings(), checked_tenant(tenant)
    trust = fleet.trust.secrets
    read = checked_jobs(file, callback_url, model, skip_invalid, not_before)
    if check:
        begun = _begun(read, tenant, receipt)
        if gateway is None:
            warn_of_refused(_numbered(begun), fleet)
            warn_of_unserved(_numbered(begun), fleet.kafka, checking=True)
        say(f"{len(begun.left)} jobs can be sent; nothing was sent")
        if read.invalid:
            raise typer.Exit(FAILED)
        return
    with ExitStack() as stack:
        stack.enter_context(exporting("submit"))
        client = stack.enter_context(gateway_client(gateway, key)) if gateway is not None else None
        stack.enter_context(_held(receipt))
        begun = _begun(read, tenant, receipt)
        unnamed = frozenset(index for index, job in enumerate(read.jobs) if job.job_id is None)
        lane = _lane(bulk, len(read.jobs), spare=spare)
        request = Request(fleet.kafka, begun, tenant, lane, receipt, unnamed, read.invalid, trust, client)
        if client is None:
            warn_of_refused(_numbered(begun), fleet)
            warn_of_unserved(_numbered(begun), fleet.kafka, checking=False)
        request.keep("nothing was sent")
        go_on = f"the jobs go on: free space there, and `postback results {_named_by(receipt)}` has all results"
        with written("--results", results, go_on) as out:
            found = look_up(request.kafka, begun) if client is None else through_gateway.look_up(client, begun)
            if found:
                place = "Kafka" if client is None else "the gateway"
                say(f"{found} jobs of an earlier run that were not known to be accepted are in {place}")
            if wait:
                answers = _submit_and_wait(request, timeout, out)
            else:
                answers = None
                with bars() as progress:
                    _send(request, progress)
        _end(request, answers)


def _named_by(receipt: Path | None) -> str:
    return "--since TIME" if receipt is None else f"--ids {receipt}"


def _lane(bulk: bool | None, jobs: int, *, spare: bool) -> Lane:
    if spare:
        return "spare"
    return "bulk" if bulk or (bulk is None and jobs > BULK_FROM) else "default"


def _numbered(receipt: Receipt) -> Iterator[tuple[int, Job]]:
    """Pair each job with its line number."""
    return ((entry.line, job) for entry, job in zip(receipt.entries, receipt.jobs, strict=True))


@contextmanager
def _held(path: Path | None) -> Iterator[None]:
    """Lock the receipt, if there is one, against other runs."""
    from producers.receipts import held

    with ExitStack() as stack:
        if path is not None:
            with _telling_of_receipt(path):
                stack.enter_context(held(path))
        yield


@contextmanager
def _telling_of_receipt(path: Path | None) -> Iterator[None]:
    from producers.receipts import ReceiptRefused

    with refusing(f"--receipt {path}"):
        try:
            yield
        except ReceiptRefused as refused:
            raise fail(f"--receipt {path}: {refused}; nothing was sent", BAD_INPUT) from None


def _begun(read: JobFile, tenant: str, path: Path | None) -> Receipt:
    """Give each job an id: the id in an earlier run's receipt, the id in its line, or a new one."""
    from producers.receipts import read_receipt, receipt_of
    from telemetry.clock import SystemClock

    with _telling_of_receipt(path):
        receipt = receipt_of(read, tenant, SystemClock(), read_receipt(path) if path is not None else ())
    if kept := len(receipt.jobs) - len(receipt.left):
        say(f"{kept} of {len(receipt.jobs)} jobs are accepted already, as {path} says")
    return receipt


def _send(request: Request, progress: Progress) -> None:
    """Send all jobs except those known to be accepted, and print the ids of all accepted jobs."""
    from producers.client import Client, SubmitError

    receipt, left = request.receipt, request.receipt.left
    bar, failed = progress.add_task("accepted", total=len(left)), 0

    def note(index: int, error: SubmitError | None) -> None:
        nonlocal failed
        receipt.answer(left[index], error)
        failed += error is not None
        progress.update(bar, advance=1, failed=failed)

    try:
        if request.gateway is not None:
            through_gateway.send(request.gateway, receipt, left, lane=request.lane, on_answer=note)
        else:
            with Client(request.kafka, trust=request.trust) as client:
                jobs = (receipt.jobs[index] for index in left)
                client.submit(jobs, tenant=request.tenant, lane=request.lane, on_answer=note)
    except KeyboardInterrupt:
        progress.stop()
        say(f"stopped; {len(receipt.jobs) - len(receipt.left)} of {len(receipt.jobs)} jobs are known to be accepted")
        _hint(request)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        request.keep("it is as it was before the jobs were sent; once it can be written, run the command again")
    if (ids := [entry.job_id for entry in receipt.entries if entry.accepted]) and not sys.stdout.isatty():
        typer.echo("\n".join(ids))


def _hint(request: Request) -> None:
    """Print how to find the results of jobs with generated ids that are not printed."""
    lost = sum(bool(request.receipt.entries[index].accepted) for index in request.unnamed)
    if lost and request.kept_in is None and sys.stdout.isatty():
        say(
            f"the ids of {lost} jobs are not shown here: `--receipt FILE` keeps them, and "
            "`postback results --since TIME` has the results of all jobs"
        )


def _submit_and_wait(request: Request, timeout: float | None, out: TextIO | None) -> Answers:
    """Send the jobs, and return their answers. If no job is accepted, the command ends here, and writes no results."""
    from producers.results import ResultsReader
    from telemetry.clock import Deadline, SystemClock

    with ExitStack() as stack:
        reader: ResultsReader | None = None
        if request.gateway is None:
            # The reader is made before the first job is sent, so that the reader misses no result.
            reader = stack.enter_context(ResultsReader(request.kafka, request.receipt.since_ms))
        for_a_person = out is None and sys.stdout.isatty()
        progress = stack.enter_context(bars(above=for_a_person))
        _send(request, progress)
        accepted = {entry.job_id: entry for entry in request.receipt.entries if entry.accepted}
        answers = Answers(accepted, out, as_line)
        if not accepted:
            progress.stop()
            _end(request, answers)
        if for_a_person:
            answers = Answers(accepted, sys.stdout, as_text, most=SHOWN)
        deadline = Deadline.after(SystemClock(), timeout) if timeout is not None else None
        try:
            if reader is not None:
                came = (answers.take(each, request.tenant) for each in reader.follow(deadline))
                answers.follow(came, progress)
            elif request.gateway is not None:
                wanted = list(accepted)
                answers.follow(map(answers.add, through_gateway.streamed(request.gateway, wanted, timeout)), progress)
        except KeyboardInterrupt:
            progress.stop()
            answers.settle()
            say(f"stopped waiting for {answers.open} jobs; the jobs go on")
            _hint(request)
            raise typer.Exit(INTERRUPTED) from None
        answers.settle()
    return answers


def _end(request: Request, answers: Answers | None = None) -> None:
    """Print the submission's outcome, and exit with 1 unless all jobs were accepted and, with --wait, succeeded."""
    receipt = request.receipt
    _say_left(receipt)
    said = [f"{len(receipt.jobs) - len(receipt.left)} of {len(receipt.jobs)} jobs accepted"]
    if answers is not None:
        if answers.unwritten:
            say(f"{answers.unwritten} more answers came; `--results FILE` keeps all of them")
        answers.tell()
        said += answers.summary
    if request.skipped:
        said.append(f"{lines_counted(request.skipped)} skipped")
    say(", ".join(said))
    if answers is None or answers.open:
        _hint(request)
    if receipt.left or request.skipped or not (answers is None or answers.well):
        raise typer.Exit(FAILED)


def _say_left(receipt: Receipt) -> None:
    """Print the jobs that were not accepted or whose acceptance is unknown, grouped by reason."""
    entries: dict[str, ReceiptEntry | None] = {entry.job_id: entry for entry in receipt.entries}
    refused, doubtful = Failures(entries, verb="was"), Failures(entries, verb="is")
    for index in receipt.left:
        entry = receipt.entries[index]
        if entry.accepted is False:
            refused.add(entry.job_id, f"not accepted: {entry.reason}")
        else:
            doubtful.add(entry.job_id, f"not known to be accepted: {entry.reason}")
    refused.tell()
    doubtful.tell()
