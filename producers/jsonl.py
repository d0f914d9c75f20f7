"""Reads files with one job on each line: a job's own JSON, or an OpenAI Batch line.

Each line is checked by the workers' rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pydantic_core import from_json

from schemas.codec import InvalidJob, Origin, read_job, wrong_start
from schemas.job import Job
from schemas.openai import is_batch_line
from schemas.problems import Problem
from schemas.unknown import UnknownFields, unknown_in
from telemetry.clock import Clock, SystemClock, unix_ms

ANY_MODEL = "any"
"""This name as a job's model means that any model may answer."""

_CLOCK = SystemClock()
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineProblem:
    """The problem of one line."""

    line: int
    """The line's number from 1; blank lines count too."""
    problem: Problem


OnInvalid = Callable[[int, bytes, Sequence[Problem]], None]
"""Called for each invalid line with its number, its content, and all of its problems."""


@dataclass(slots=True)
class JobFile:
    """The valid jobs of a file, and the problems of its invalid lines."""

    jobs: list[Job] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Each job's line number."""
    urls: list[str | None] = field(default_factory=list)
    """Each Batch line's `url`, such as `/v1/chat/completions`; None for a job's own JSON."""
    unknown: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Maps the path of each ignored field (`ttl`, `body.presence_penalty`) to the numbers of the lines that have it."""
    problems: list[LineProblem] = field(default_factory=list)
    invalid: int = 0
    """The number of invalid lines, which have no entry in `jobs`."""

    def note_unknown(self, line: int, unknown: UnknownFields | None) -> None:
        """Record the unknown fields of one line."""
        for name in unknown.names if unknown is not None else ():
            self.unknown[name].append(line)


def read_jobs(
    lines: Iterable[bytes],
    callback_url: str | None = None,
    model: str | None = None,
    on_invalid: OnInvalid | None = None,
    not_before: float | None = None,
    clock: Clock = _CLOCK,
) -> JobFile:
    """Read all lines. Blank lines are skipped.

    `callback_url` and `not_before` (Unix seconds) are set in jobs without these fields. `model` replaces the model of
    every job; see ANY_MODEL. A line that repeats the `job_id` or `custom_id` of an earlier line is invalid, and so is a
    `not_before` that is too late by the `clock`.
    """
    read = JobFile()
    first_lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, start=1):
        content = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip()
        if not content:
            continue
        problems: Sequence[Problem]
        try:
            received = read_job(content, None, Origin("", 0, number), unix_ms(clock))
        except InvalidJob as invalid:
            problems = invalid.problems
            read.note_unknown(number, unknown_in(_document(content)))
        else:
            job = _with_defaults(received.job, callback_url, not_before)
            problems = [*_repeated(job, number, first_lines), *wrong_start(job, unix_ms(clock))]
            read.note_unknown(number, received.unknown)
        if problems:
            read.invalid += 1
            read.problems += [LineProblem(number, problem) for problem in problems]
            if on_invalid is not None:
                on_invalid(number, content, problems)
            continue
        read.jobs.append(_with_model(job, model))
        read.lines.append(number)
        read.urls.append(_batch_url(content) if job.custom_id is not None else None)
    return read


def _repeated(job: Job, number: int, first_lines: dict[tuple[str, str], int]) -> Iterator[Problem]:
    """Yield a problem for each id that an earlier line also has.

    Otherwise the results of both jobs would have this id.
    """
    for kind, name in (("job_id", job.job_id), ("custom_id", job.custom_id)):
        if name is not None and (first := first_lines.setdefault((kind, name), number)) != number:
            yield Problem(kind, f"stands on line {first} too")


def _document(content: bytes) -> object:
    """Return the parsed JSON; None for text that is not JSON."""
    try:
        return from_json(content)
    except ValueError:
        return None


def _batch_url(content: bytes) -> str | None:
    """Return the URL of a Batch line; None for a job's own JSON."""
    document = _document(content)
    return document["url"] if is_batch_line(document) else None


def _with_defaults(job: Job, callback_url: str | None, not_before: float | None) -> Job:
    defaults = {"callback_url": callback_url, "not_before": not_before}
    update = {name: value for name, value in defaults.items() if value is not None and getattr(job, name) is None}
    return job.model_copy(update=update) if update else job


def _with_model(job: Job, model: str | None) -> Job:
    if model is None:
        return job
    return job.model_copy(update={"model_id": None if model == ANY_MODEL else model})
