"""Files of jobs, one a line: a bare job or a line of an OpenAI Batch. Each line is judged as by a worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.codec import InvalidJob, Origin, read_job
from schemas.job import Job
from schemas.problems import Problem

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
    problems: list[LineProblem] = field(default_factory=list)


def read_jobs(lines: Iterable[bytes], callback_url: str | None = None) -> JobFile:
    """Read every line before anything is sent. Blank lines are passed over.

    `callback_url` is for the jobs that name none.
    """
    read = JobFile()
    first_line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        content = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).strip()
        if not content:
            continue
        try:
            job = read_job(content, None, Origin("", 0, number), 0).job
        except InvalidJob as invalid:
            read.problems += [LineProblem(number, problem) for problem in invalid.problems]
            continue
        if job.job_id and (first := first_line_of.setdefault(job.job_id, number)) != number:
            read.problems.append(LineProblem(number, Problem("job_id", f"stands on line {first} too")))
        read.jobs.append(_with_callback(job, callback_url))
        read.lines.append(number)
    return read


def _with_callback(job: Job, callback_url: str | None) -> Job:
    if callback_url is None or job.callback_url is not None:
        return job
    return job.model_copy(update={"callback_url": callback_url})
