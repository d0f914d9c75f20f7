"""`postback submit`: a file of jobs into the fleet, and its results back where that is asked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, TextIO

import typer

from console.errors import BAD_INPUT, FAILED, fail, quiet_clients, say, telling
from console.progress import INTERRUPTED, bars
from console.settings import checked_tenant, fleet_settings

if TYPE_CHECKING:
    from rich.progress import Progress

    from producers.client import Lane, Receipt
    from producers.jsonl import JobFile
    from producers.results import ResultsReader
    from schemas.result import Result
    from schemas.settings import KafkaSettings
    from telemetry.clock import Deadline

_SHOWN = 20
"""Problems that are spelled out; more help nobody."""


@dataclass(slots=True)
class Answers:
    """What came back of the jobs that are waited for."""

    pending: set[str]
    outcomes: dict[str, int] = field(default_factory=dict)
    unsuccessful: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> bool:
        """Whether somebody waited for it."""
        if result.job_id not in self.pending:
            return False
        self.pending.remove(result.job_id)
        self.outcomes[result.outcome.value] = self.outcomes.get(result.outcome.value, 0) + 1
        if result.outcome.value != "succeeded":
            self.unsuccessful.append(result)
        return True


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for, checked."""

    kafka: KafkaSettings
    jobs: JobFile
    tenant: str
    lane: Lane


def submit(
    file: Annotated[str, typer.Argument(help="JSON Lines, one job a line; - is standard input.", metavar="FILE|-")],
    callback_url: Annotated[
        str | None, typer.Option(help="Where the results of jobs go that name no callback of their own.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="On whose behalf.")] = "default",
    bulk: Annotated[
        bool, typer.Option("--bulk", help="Take the lane of what may wait behind everything else.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the results; 0 then means that all succeeded.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="With --wait: seconds to wait; else until all are there.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="With --wait: write the results here, one a line.")] = None,
) -> None:
    """Submit jobs: a line is a job, or a line of an OpenAI Batch.

    All lines are checked before the first is sent. Exit status: 0 all accepted (with --wait: all succeeded), 1 some
    not, 2 bad input and nothing sent.
    """
    quiet_clients()
    from producers.errors import ProducerError

    for option, value in (("--timeout", timeout), ("--results", results)):
        if value is not None and not wait:
            raise fail(f"{option} is for --wait, and nothing was sent", BAD_INPUT)
    request = Request(
        fleet_settings().kafka, _checked_jobs(file, callback_url), checked_tenant(tenant), "bulk" if bulk else "default"
    )
    with telling(ProducerError), _written(results) as out:
        if wait:
            _submit_and_wait(request, timeout, out)
        else:
            with bars() as progress:
                receipt = _send(request, progress)
            _end(request, receipt)


def _checked_jobs(file: str, callback_url: str | None) -> JobFile:
    from producers.jsonl import read_jobs

    url = _checked_url(callback_url)
    with _lines(file) as lines:
        read = read_jobs(lines, url)
    name = "standard input" if file == "-" else file
    for found in read.problems[:_SHOWN]:
        say(f"{name}:{found.line}: {found.problem}")
    if read.problems:
        more = f", {len(read.problems) - _SHOWN} more than shown" if len(read.problems) > _SHOWN else ""
        raise fail(f"{len(read.problems)} problems{more}; nothing was sent", BAD_INPUT)
    if not read.jobs:
        raise fail(f"{name} holds no job; nothing was sent", BAD_INPUT)
    return read


def _checked_url(url: str | None) -> str | None:
    from pydantic import TypeAdapter, ValidationError

    from schemas.job import Url

    try:
        return TypeAdapter[str](Url).validate_python(url) if url is not None else None
    except ValidationError:
        raise fail("--callback-url: is not an http or https URL without credentials", BAD_INPUT) from None


@contextmanager
def _lines(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 - closed below; only opening is to be caught
    except OSError as error:
        raise fail(f"{file}: {error.strerror}", BAD_INPUT) from None
    with opened:
        try:
            yield opened
        except OSError as error:
            raise fail(f"{file}: {error.strerror}", BAD_INPUT) from None


@contextmanager
def _written(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        opened = path.open("w", encoding="utf-8")
    except OSError as error:
        raise fail(f"--results {path}: {error.strerror}", BAD_INPUT) from None
    with opened:
        yield opened


def _send(request: Request, progress: Progress) -> Receipt:
    from producers.client import Client

    bar = progress.add_task("accepted", total=len(request.jobs.jobs))
    with Client(request.kafka) as client:
        return client.submit(
            request.jobs.jobs,
            tenant=request.tenant,
            lane=request.lane,
            on_done=lambda done: progress.update(bar, completed=done),
        )


def _submit_and_wait(request: Request, timeout: float | None, out: TextIO | None) -> None:
    from producers.results import ResultsReader
    from telemetry.clock import Deadline, SystemClock

    with ExitStack() as stack:
        # Made before the first job is sent, so that no result can come before it looks.
        reader = stack.enter_context(ResultsReader(request.kafka))
        progress = stack.enter_context(bars())
        receipt = _send(request, progress)
        answers = Answers(set(receipt.job_ids))
        deadline = Deadline.after(SystemClock(), timeout) if timeout is not None else None
        try:
            _collect(request.tenant, reader, answers, progress, deadline, out)
        except KeyboardInterrupt:
            progress.stop()
            say(f"stopped waiting for {len(answers.pending)} jobs, which go on")
            raise typer.Exit(INTERRUPTED) from None
    _end(request, receipt, answers)


def _collect(
    tenant: str,
    reader: ResultsReader,
    answers: Answers,
    progress: Progress,
    deadline: Deadline | None,
    out: TextIO | None,
) -> None:
    """Until every job has its result, or the time is up."""
    from schemas.codec import write_result

    bar = progress.add_task("answered", total=len(answers.pending))
    while answers.pending and not (deadline and deadline.passed):
        for owner, result in reader.poll():
            if owner == tenant and answers.add(result):
                progress.advance(bar)
                if out is not None:
                    out.write(write_result(result).decode() + "\n")


def _end(request: Request, receipt: Receipt, answers: Answers | None = None) -> None:
    """Say what came of it, and end with 1 unless all is well."""
    for error in receipt.errors[:_SHOWN]:
        say(f"line {request.jobs.lines[error.index]} was not accepted: {error.reason}")
    said = f"{receipt.accepted} of {len(request.jobs.jobs)} jobs accepted"
    well = not receipt.errors
    if answers is not None:
        for result in answers.unsuccessful[:_SHOWN]:
            why = f": {result.error.message}" if result.error else ""
            say(f"{result.job_id} {result.outcome.value}{why}")
        counts = [f"{count} {outcome}" for outcome, count in sorted(answers.outcomes.items(), reverse=True)]
        said = ", ".join([said, *counts, *([f"{len(answers.pending)} without a result"] if answers.pending else [])])
        well = well and not answers.pending and not answers.unsuccessful
    say(said)
    if not well:
        raise typer.Exit(FAILED)
