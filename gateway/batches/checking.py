"""Checks every line of a batch's input before the first one runs, so that a bad line is found early and named.

The lines are read one at a time. Only the hashes of the `custom_id`s, 16 bytes each, take memory that grows with the
file.
Source of the errors' form: OpenAI's API reference, "The batch object", `errors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import from_json

from gateway.batches.ranges import LONGEST_REASON, Line, LineCut, SkippedLine, cut, lines_of
from schemas import openai
from schemas.codec import read_batch_line
from schemas.job import MAX_JOB_BYTES, Job
from schemas.problems import UnusableLine

MOST_LINES: Final = 50_000
MOST_BYTES: Final = 200 * 1024 * 1024
"""OpenAI's bounds of a batch's input."""
MOST_ERRORS: Final = 100
"""The maximum number of errors that a batch lists. The check stops when it has found this many."""

CheckJob = Callable[[Job], str | None]
"""Returns the reason why the tenant may not run the job, as a sentence; None if the tenant may."""


@dataclass(frozen=True, slots=True)
class LineError:
    """The problem of one line, or of the whole file. `line` is the line's number, counted from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    @property
    def json(self) -> dict[str, Any]:
        """The error, in the form that members of `errors.data` have."""
        return {"code": self.code, "line": self.line, "message": self.message, "param": self.param}

    def skipped(self, number: int) -> SkippedLine:
        """Return the reason why the line with this number, from 0, is skipped."""
        return SkippedLine(line=number, code=self.code, message=self.message[:LONGEST_REASON])


@dataclass(slots=True)
class Checked:
    """The outcome of a check: either errors, or the ranges of all lines."""

    total: int = 0
    ranges: list[LineCut] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)
    skipped: dict[int, SkippedLine] = field(default_factory=dict)
    """The lines that will not run, by their numbers, in a batch that skips its bad lines."""


def check_file(
    pieces: Iterable[bytes],
    endpoint: str,
    check_job: CheckJob,
    *,
    expires_ms: int | None = None,
    skips: bool = False,
) -> Checked:
    """Check a file's lines. The result has at most MOST_ERRORS errors, in the order of the lines.

    `expires_ms` is the time of the batch's expiry in Unix milliseconds, before which each line begins. If the batch
    skips bad lines, they are no errors of the file.
    """
    checked, check = Checked(), _LineCheck(endpoint, check_job, expires_ms)

    def usable() -> Iterator[Line]:
        for line in _without_blank_end(lines_of(pieces)):
            checked.total = line.number + 1
            if checked.total > MOST_LINES:
                message = f"The file has more than {MOST_LINES} lines; split it."
                checked.errors.append(LineError("too_many_lines", message, checked.total))
            elif found := check.errors_of(line):
                if skips:
                    checked.skipped[line.number] = found[0].skipped(line.number)
                else:
                    checked.errors += found
            if checked.total > MOST_LINES or len(checked.errors) >= MOST_ERRORS:
                return
            yield line

    checked.ranges = list(cut(usable(), checked.skipped))
    del checked.errors[MOST_ERRORS:]
    if checked.total == 0:
        checked.errors.append(LineError("empty_file", "The file has no lines."))
    return checked


def _without_blank_end(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield all lines except the blank lines at the file's end."""
    blank: list[Line] = []
    for line in lines:
        if line.content == b"" and len(blank) < MOST_ERRORS:
            blank.append(line)
            continue
        yield from blank
        blank = []
        yield line


class _LineCheck:
    """The rules for the lines of one file, and the `custom_id`s of the lines so far."""

    def __init__(self, endpoint: str, check_job: CheckJob, expires_ms: int | None) -> None:
        self._endpoint = endpoint
        self._check_job = check_job
        self._expires_ms = expires_ms
        self._seen: dict[bytes, int] = {}
        """Hashes of the `custom_id`s, because the texts could take 25 MB."""

    def errors_of(self, line: Line) -> list[LineError]:
        """Return the problems of the next line; none for a line that may run."""
        number = line.number + 1
        if line.content is None:
            message = f"Line {number} has more than {MAX_JOB_BYTES} bytes; shorten it."
            return [LineError("line_too_large", message, number)]
        try:
            document = from_json(line.content, allow_inf_nan=False)
        except ValueError:
            message = f"Line {number} is {'blank; delete it' if not line.content else 'not a JSON object'}."
            return [LineError("invalid_json_line", message, number)]
        if not openai.is_batch_line(document):
            message = (
                f"Line {number} is not a request: it has `custom_id`, `method`, `url` and `body`, and nothing else."
            )
            return [LineError("invalid_request_line", message, number)]
        return self._frame_errors(document, number) or self._job_errors(document, number)

    def _frame_errors(self, document: dict[str, Any], number: int) -> list[LineError]:
        """Return the problems around the body of a request."""
        errors: list[LineError] = []
        if document.get("url") != self._endpoint:
            message = f"Line {number}: `url` is not the batch's endpoint {self._endpoint}."
            errors.append(LineError("invalid_url", message, number, "url"))
        if "method" not in document:
            errors.append(LineError("invalid_method", f"Line {number}: `method` is required: POST.", number, "method"))
        custom_id = document.get("custom_id")
        if isinstance(custom_id, str) and (earlier := self._earlier(custom_id, number)) is not None:
            message = f"Line {number}: `custom_id` is that of line {earlier} too; each line needs its own."
            errors.append(LineError("duplicate_custom_id", message, number, "custom_id"))
        return errors

    def _job_errors(self, document: dict[str, Any], number: int) -> list[LineError]:
        """Return the problems of a request's job."""
        try:
            job, _ = read_batch_line(document)
        except UnusableLine as unusable:
            return [_unusable(number, str(problem.field), str(problem)) for problem in unusable.problems[:MOST_ERRORS]]
        if job.not_before is not None and self._expires_ms is not None and job.begins_ms(0) >= self._expires_ms:
            problem = "body.not_before is past the batch's expiry; choose an earlier time"
            return [_unusable(number, "body.not_before", problem)]
        refusal = self._check_job(job)
        return [] if refusal is None else [LineError("not_allowed", f"Line {number}: {refusal}", number)]

    def _earlier(self, custom_id: str, number: int) -> int | None:
        """Return the earlier line with the same id; if there is none, note this line and return None."""
        digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        earlier = self._seen.setdefault(digest, number)
        return None if earlier == number else earlier


def _unusable(number: int, name: str, problem: str) -> LineError:
    code = "missing_required_parameter" if "is required" in problem else "invalid_value"
    if name == "method":
        code = "invalid_method"
    return LineError(code, f"Line {number}: {problem}.", number, name)
