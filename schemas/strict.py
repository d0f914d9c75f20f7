"""Reads jobs strictly, as the gateway does: an unknown field is refused, with the nearest known name.

A worker ignores the unknown fields of a record, so that an older worker can read a newer producer's jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from schemas import openai
from schemas.codec import read_batch_line
from schemas.job import ImagePart, Job
from schemas.kind_bodies import ENDPOINTS
from schemas.openai import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    RESPONSES,
    body_fields,
    is_batch_line,
    problem_in_line,
)
from schemas.problems import MAX_PROBLEMS, Problem, UnusableLine, problems_of
from schemas.unknown import nearest, refused, taken_from, unknown_fields, unknown_reason

_NUL = "\0"
_BODY = "body."
_CALLED_ELSEWHERE = {
    CHAT_COMPLETIONS: {"input": "messages", "prompt": "messages", "max_output_tokens": "max_completion_tokens"},
    COMPLETIONS: {"input": "prompt", "messages": "prompt", "max_completion_tokens": "max_tokens"},
    RESPONSES: {"messages": "input", "prompt": "input", "response_format": "text", "max_tokens": "max_output_tokens"},
    **{endpoint.url: endpoint.elsewhere for endpoint in ENDPOINTS.values()},
}
"""For each URL, the names by which other URLs call its members."""


class NotAJob(ValueError):  # noqa: N818 - named after the input
    """The input is not a job, or has unknown fields. The error's text repeats no value of the input."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems[:MAX_PROBLEMS]


def parsed(body: bytes) -> Any:
    """Return the value of JSON. Raises NotAJob."""
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise NotAJob(Problem("body", f"is not JSON: {error}")) from None


def job_in(body: bytes) -> Job:
    """Return the job, or the Batch line's job, in the bytes of a JSON object. Raises NotAJob."""
    try:
        job = Job.model_validate_json(body, strict=True, extra="allow")
    except ValidationError:
        return job_of(parsed(body))  # parses the body again, but only refused jobs and Batch lines come here
    return _checked(job)


def job_of(document: object) -> Job:
    """Return the job, or the Batch line's job, in a JSON value. Raises NotAJob."""
    if is_batch_line(document):
        return _line_job(document)
    try:
        return _checked(Job.model_validate(document, strict=True, extra="allow"))
    except ValidationError as error:
        raise NotAJob(*_misspelt(document), *problems_of(error)) from None


def body_job(url: str, body: object) -> Job:
    """Return the job of a request's body to one of OpenAI's URLS. Raises NotAJob, with the body's names for fields."""
    if not isinstance(body, dict):
        raise NotAJob(Problem("body", "is not a JSON object"))
    line = {"url": url, "body": body}
    misspelt = _misspelt_members(line)
    try:
        job = Job.model_validate(body_fields(url, body), strict=True)
    except UnusableLine as unusable:
        raise NotAJob(*misspelt, *map(_unframed, unusable.problems)) from None
    except ValidationError as error:
        found = (_unframed(problem_in_line(problem, line)) for problem in problems_of(error))
        raise NotAJob(*misspelt, *found) from None
    return _whole(job, *misspelt)


def ignored_members(url: str, body: dict[str, Any]) -> list[str]:
    """Return a sentence about the members of a usable body that have no effect; nothing if there are none."""
    names = openai.passed_over({"url": url, "body": body})
    return [f"ignored, since no engine here has it: {', '.join(f'`{name}`' for name in names)}"] if names else []


def _line_job(line: dict[str, Any]) -> Job:
    try:
        job, _ = read_batch_line(line)
    except UnusableLine as unusable:
        raise NotAJob(*unusable.problems) from None
    frame = unknown_fields(name for name in line if name not in ("custom_id", "method", "url", "body"))
    return _whole(
        job, *refused(frame), *(Problem(f"{_BODY}{each.field}", each.reason) for each in _misspelt_members(line))
    )


def _checked(job: Job) -> Job:
    """Return a job that was read with `extra="allow"`. Raises NotAJob if the job has unknown fields."""
    in_messages = unknown_fields(_names_in_messages(job)) if job.messages is not None else None
    unknown = taken_from(job)
    if unknown is None and in_messages is None:
        return _whole(job)
    return _whole(job, *refused(unknown), *refused(in_messages))


def _names_in_messages(job: Job) -> Iterator[str]:
    for index, message in enumerate(job.messages or ()):
        yield from (f"messages.{index}.{name}" for name in message.model_extra or ())
        for place, part in enumerate(message.parts):
            yield from (f"messages.{index}.content.{place}.{name}" for name in part.model_extra or ())
            if isinstance(part, ImagePart):
                at = f"messages.{index}.content.{place}.image_url"
                yield from (f"{at}.{name}" for name in part.image_url.model_extra or ())
        for place, call in enumerate(message.tool_calls or ()):
            at = f"messages.{index}.tool_calls.{place}"
            yield from (f"{at}.{name}" for name in call.model_extra or ())
            yield from (f"{at}.function.{name}" for name in call.function.model_extra or ())


def _whole(job: Job, *problems: Problem) -> Job:
    """Return the job if it has no problems, and no character that a database cannot store. Raises NotAJob."""
    if job.custom_id is not None and _NUL in job.custom_id:
        problems += (Problem("custom_id", "has a NUL character, which a database cannot store"),)
    if job.metadata and any(_NUL in name or _NUL in value for name, value in job.metadata.items()):
        problems += (Problem("metadata", "has a NUL character, which a database cannot store"),)
    if problems:
        raise NotAJob(*problems)
    return job


def _misspelt(document: object) -> tuple[Problem, ...]:
    """Return problems for the unknown fields of an invalid job, because a field `promt` explains a missing `prompt`."""
    if not isinstance(document, dict):
        return ()
    return refused(unknown_fields(name for name in document if name not in Job.model_fields))


def _misspelt_members(line: dict[str, Any]) -> tuple[Problem, ...]:
    """Return problems for those members of a body that OpenAI's API does not know at this URL."""
    members = openai.members_of(line["url"])
    unknown = unknown_fields(
        name
        for name in openai.passed_over(line)
        if name not in members and (name in openai.MEMBERS or name not in openai.NOT_TAKEN)
    )
    names = unknown.names if unknown is not None else ()
    return tuple(Problem(name, unknown_reason(_meant(line["url"], name, members))) for name in names)


def _meant(url: str, name: str, members: Collection[str]) -> str | None:
    elsewhere = _CALLED_ELSEWHERE[url]
    alike = name if name in elsewhere else nearest(name, sorted(members | elsewhere.keys()))
    return elsewhere.get(alike or "", alike)


def _unframed(problem: Problem) -> Problem:
    """Return the problem with its place in the body, without the Batch line around the body."""
    return Problem(problem.field.removeprefix(_BODY), problem.reason)
