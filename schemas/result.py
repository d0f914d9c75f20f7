"""A result: a worker's record on `model_results`, one per job for a read_committed reader."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.job import WireModel

MAX_RESULT_BYTES = 900 * 1024
"""The largest result, as bytes of its record's value; a larger answer ends as `failed`, `result_too_large`."""


class Outcome(StrEnum):
    """The end of a job. Every job has exactly one."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class Support(StrEnum):
    """How closely a citation's source matches the sentence."""

    EXACT = "exact"
    FUZZY = "fuzzy"
    LEXICAL = "lexical"
    UNSUPPORTED = "unsupported"
    DANGLING = "dangling"


class Citation(WireModel):
    """A place in `text` that rests on a source. `start` and `end` count Unicode code points of `text`."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    source: str
    support: Support


class SourceDetails(WireModel):
    """Details of a source that the answer used, as its page or the search service states them."""

    id: str
    """As in `sources`."""
    url: str
    """The address that answered, after redirects."""
    canonical_url: str | None = None
    """The page's canonical address (RFC 6596), where it differs and has the same origin."""
    title: str | None = None
    published: str | None = None
    """An ISO 8601 date, as exact as it is known: `2023`, `2023-05` or `2023-05-17`."""
    doi: str | None = None


class Usage(WireModel):
    """Tokens that the engine read and wrote."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    total_tokens: int = Field(default=0, ge=0)


class Timings(WireModel):
    """Milliseconds spent in each phase."""

    queued_ms: float = Field(default=0.0, ge=0)
    enrich_ms: float = Field(default=0.0, ge=0)
    infer_ms: float = Field(default=0.0, ge=0)


class ResultError(WireModel):
    """The reason why a job did not succeed: `code` is stable and for programs, `message` is for people."""

    code: str
    message: str


class Result(WireModel):
    """The result of one job."""

    job_id: str
    custom_id: str | None = None
    model_id: str | None = None
    """The job's `model_id`; where absent, the name of the engine's model, or null if the engine has none."""
    outcome: Outcome
    text: str | None = None
    """The answer."""
    confidence: float | None = Field(default=None, ge=0.0, le=1.0)
    """exp(mean log-probability of the answer's tokens): the geometric mean of what the model gave each of them.

    Where sources were asked for, times (1 + s) / 2, s being the part of the answer's sentences, or of the items of its
    evidence chain, that a citation with support exact, fuzzy or lexical covers: unsupported, it is half of that.
    """
    sources: list[str] = Field(default_factory=list)
    """Identifiers of the sources that the answer used, in the order of their first use."""
    source_details: list[SourceDetails] = Field(default_factory=list)
    """Details of each of these sources, in the same order."""
    citations: list[Citation] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """Notes for the reader, such as a source that was left out, and the reason."""
    usage: Usage | None = None
    finish_reason: Literal["stop", "length", "abort", "content_filter", "tool_calls", "repetition", "other"] | None = (
        None
    )
    """The reason for the end of generation: `stop` (by itself), `length` (at `max_tokens`) or `abort` (from outside).

    After any other reason the outcome is `failed`, its error's code `unfinished`, and there is no text: a filter held
    the answer back, the model called a tool instead, it repeated itself, or the engine gave a reason that is not known.
    """
    timings: Timings | None = None
    engine: str | None = None
    """The engine that generated the answer, for example `vllm`."""
    error: ResultError | None = None
    """Present unless the outcome is `succeeded`."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """The job's metadata, unchanged."""
    created_at: int
    """Unix seconds."""
