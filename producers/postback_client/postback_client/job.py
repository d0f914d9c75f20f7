"""Jobs as they are submitted. This library does not check jobs; the gateway and the workers do."""

from __future__ import annotations

import dataclasses
import json
import secrets
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from postback_client.clock import ClientClock
from postback_client.errors import UnusableJob

Lane = Literal["default", "bulk", "spare"]
"""Jobs of `bulk` may wait behind those of `default`. Jobs of `spare` run only while no other job waits."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One prompt or other input with its options. If an option is None, the fleet's default applies.

    One of `prompt`, `messages`, `embed`, `rerank`, `score`, `classify` and `payload_url` is required.

    A field that this version of the library does not know can be sent in a mapping, which `submit` takes too. Source:
    the fleet's published JSON Schema of jobs.
    """

    prompt: str | None = None
    """The question as one text: one user message, unless `raw` is set."""
    raw: bool | None = None
    """If true, the model continues the prompt as it stands."""
    messages: Sequence[Mapping[str, Any]] | None = None
    """The question as a chat in OpenAI's shape."""
    embed: Sequence[str] | None = None
    """Texts, sent instead of a question, whose embeddings are the answer."""
    dimensions: int | None = None
    """The length of each embedding in numbers, for models with several lengths."""
    rerank: Mapping[str, Any] | None = None
    """Documents to rank for a query, instead of a question: `query`, `documents`, `top_n`."""
    score: Mapping[str, Any] | None = None
    """Pairs of texts to score, instead of a question: `queries`, `documents`."""
    classify: Sequence[str] | None = None
    """Texts to label, instead of a question."""
    payload_url: str | None = None
    """The https or `s3://` URL of a JSON document with the question, for a question that is too large for a record."""
    payload_sha256: str | None = None
    """The SHA-256 of that document, 64 hexadecimal digits."""
    job_id: str | None = None
    """The job's name within its tenant, at most 256 printable ASCII characters; if it is None, `submit` makes one."""
    model_id: str | None = None
    """A model's name; if it is None, any model may answer."""
    callback_url: str | None = None
    """The URL to which the signed result is POSTed."""
    sources: Mapping[str, Any] | None = None
    """Pages to read before answering: `urls`, `search`, `profile`, `required`."""
    max_tokens: int | None = None
    """The largest number of tokens in the answer."""
    temperature: float | None = None
    """The randomness of sampling, 0 for greedy; by default the profile's or the model's own."""
    top_p: float | None = None
    """The probability of nucleus sampling."""
    min_p: float | None = None
    """The least probability of a token, as a fraction of the likeliest token's."""
    stop: Sequence[str] | None = None
    """Texts that end the answer."""
    seed: int | None = None
    """The seed of random sampling."""
    n: int | None = None
    """The number of answers, which are the result's `choices`; 1 if it is None."""
    logprobs: bool | None = None
    """If true, the result has the log-probability of each token of the answer."""
    top_logprobs: int | None = None
    """The number of likeliest tokens that the result lists at each place of the answer. It requires `logprobs`."""
    response_format: Mapping[str, Any] | None = None
    """The answer's form, as OpenAI's `response_format`."""
    context_window: int | None = None
    """The largest number of tokens in prompt and answer together."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may call, in OpenAI's shape. The calls are the result's `tool_calls`; no call is run."""
    tool_choice: str | Mapping[str, Any] | None = None
    """`auto`, `none`, `required` or one function, in OpenAI's shape. It requires `tools`."""
    parallel_tool_calls: bool | None = None
    """If false, the model may make at most one call."""
    reasoning: Mapping[str, Any] | None = None
    """Bounds of the model's reasoning: `effort`, `max_tokens`."""
    adapter: str | None = None
    """The name of a LoRA adapter."""
    priority: int | None = None
    """The job's priority, 0 to 9. Jobs with a higher number run first."""
    not_before: float | None = None
    """The time before which the job does not start, in Unix seconds; if it is None, the job starts at once."""
    ttl_seconds: float | None = None
    """Seconds from then until the job ends as `expired`."""
    metadata: Mapping[str, str] | None = None
    """The caller's own data, which the result has unchanged."""
    custom_id: str | None = None
    """The caller's own name for the job, which the result has too."""


@dataclasses.dataclass(frozen=True, slots=True)
class JobState:
    """A job's state, as the gateway knows it."""

    status: str
    """`queued`, `cancelling`, or the job's outcome."""
    not_before: int | None = None
    """The time before which the job does not start, in Unix seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class NamedJob:
    """A job that has an id, as JSON."""

    job_id: str
    body: bytes


def named_jobs(
    jobs: Iterable[Job | Mapping[str, Any]], clock: ClientClock, key: str | None = None
) -> Iterator[NamedJob]:
    """Yield the jobs as JSON, with ids. With a key, a repeated call yields the same ids.

    Raises UnusableJob.
    """
    for index, job in enumerate(jobs):
        members = dict(job) if isinstance(job, Mapping) else _members(job)
        if members.get("job_id") is None:
            members["job_id"] = _new_id(clock) if key is None else f"job_{uuid.uuid5(_NAMES, f'{key}:{index}').hex}"
        try:
            body = json.dumps(members, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:  # an unpaired surrogate is a ValueError too
            raise UnusableJob(index, type(error).__name__) from None
        yield NamedJob(str(members["job_id"]), body)


_NAMES = uuid.UUID("c5f3a2b0-8d2e-4f0b-9d57-6a0a4c1f2e11")


def _members(job: Job) -> dict[str, Any]:
    """Return the members that have a value."""
    fields = ((each.name, getattr(job, each.name)) for each in dataclasses.fields(job))
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields if value is not None}


def _new_id(clock: ClientClock) -> str:
    """Return `job_` and a UUID version 7 in hexadecimal (RFC 9562, section 5.7): ids sort by their time."""
    milliseconds = int(clock.time() * 1000) & (1 << 48) - 1
    number = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"job_{number:032x}"
