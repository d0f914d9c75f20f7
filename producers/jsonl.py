"""Files of jobs, one a line: a bare job or a line of an OpenAI Batch. Each line is judged as by a worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from schemas.codec import InvalidJob, Origin, read_job
from schemas.job import Job
from schemas.openai import is_batch_line, passed_over
from schemas.problems import Problem

ANY_MODEL = "any"
"""Instead of a model's name: whichever model answers."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineProblem:
    """What is wrong with one line."""

    line: int
    """Counted from 1, blank lines included."""
    problem: Problem


@dataclass(slots=True)
class JobFile:
    """What was read: the jobs if there are no problems, else what to mend."""

    jobs: list[Job] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The line on which each job stands."""
    urls: list[str | None] = field(default_factory=list)
    """What each line of an OpenAI Batch asks, as in `/v1/chat/completions`; None for a bare job."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Members of OpenAI's bodies that a job does not know, with the number of lines that have them."""
    problems: list[LineProblem] = field(default_factory=list)


def read_jobs(lines: Iterable[bytes], callback_url: str | None = None, model: str | None = None) -> JobFile:
    """Read every line before anything is sent. Blank lines are passed over.

    `callback_url` is for the jobs that name none. `model` is for all of them, whatever they name; see ANY_MODEL.
    """
    read = JobFile()
    first_lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, start=1):
        content = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip()
        if not content:
            continue
        try:
            job = read_job(content, None, Origin("", 0, number), 0).job
        except InvalidJob as invalid:
            read.problems += [LineProblem(number, problem) for problem in invalid.problems]
            continue
        read.problems += [LineProblem(number, problem) for problem in _repeated(job, number, first_lines)]
        read.jobs.append(_with_model(_with_callback(job, callback_url), model))
        read.lines.append(number)
        line_of_batch = _batch_line(content) if job.custom_id is not None else None
        read.urls.append(line_of_batch["url"] if line_of_batch is not None else None)
        read.passed_over.update(passed_over(line_of_batch) if line_of_batch is not None else ())
    return read


def _repeated(job: Job, number: int, first_lines: dict[tuple[str, str], int]) -> Iterator[Problem]:
    """Names that stand on an earlier line too: whoever reads the results could not tell the two apart."""
    for kind, name in (("job_id", job.job_id), ("custom_id", job.custom_id)):
        if name is not None and (first := first_lines.setdefault((kind, name), number)) != number:
            yield Problem(kind, f"stands on line {first} too")


def _batch_line(content: bytes) -> dict[str, Any] | None:
    """The line as it stands, where it is one of a Batch that became a job."""
    document = from_json(content)
    return document if is_batch_line(document) else None


def _with_callback(job: Job, callback_url: str | None) -> Job:
    if callback_url is None or job.callback_url is not None:
        return job
    return job.model_copy(update={"callback_url": callback_url})


def _with_model(job: Job, model: str | None) -> Job:
    if model is None:
        return job
    return job.model_copy(update={"model_id": None if model == ANY_MODEL else model})
