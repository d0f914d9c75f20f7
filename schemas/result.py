"""A result: a worker's record on `model_results`, one per job for a read_committed reader."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.job import WireModel
from schemas.outcome import Outcome

MAX_RESULT_BYTES = 900 * 1024
"""The largest result, as bytes of its record's value; a larger answer ends as `failed`, `result_too_large`."""


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
    """The first code point of the place."""
    end: int = Field(ge=0)
    """The code point behind the place."""
    source: str
    """The source's identifier, as in `sources`; `[n]` where no source has the cited number n."""
    support: Support
    """How closely the source matches the sentence."""


class SourceDetails(WireModel):
    """Details of a source that the answer used, as its page or the search service states them."""

    id: str
    """As in `sources`."""
    url: str
    """The address that answered, after redirects."""
    canonical_url: str | None = None
    """The page's canonical address (RFC 6596), where it differs and has the same origin."""
    title: str | None = None
    """The page's or the article's title."""
    published: str | None = None
    """An ISO 8601 date, as exact as it is known: `2023`, `2023-05` or `2023-05-17`."""
    doi: str | None = None
    """The article's Digital Object Identifier."""


class Usage(WireModel):
    """Tokens that the engine read and wrote."""

    prompt_tokens: int = Field(default=0, ge=0)
    """Tokens of the prompt, sources included."""
    completion_tokens: int = Field(default=0, ge=0)
    """Tokens that were generated."""
    total_tokens: int = Field(default=0, ge=0)
    """The sum of both."""


class Timings(WireModel):
    """Milliseconds spent in each phase."""

    queued_ms: float = Field(default=0.0, ge=0)
    """From the record's timestamp until the worker began the job."""
    enrich_ms: float = Field(default=0.0, ge=0)
    """Reading and choosing sources."""
    infer_ms: float = Field(default=0.0, ge=0)
    """Generating the answer, the engine's queue included."""


class ResultError(WireModel):
    """The reason why a job did not succeed: `code` is stable and for programs, `message` is for people."""

    code: str
    """A stable code for programs."""
    message: str
    """The reason in a sentence for people."""


class Result(WireModel):
    """The result of one job."""

    job_id: str
    """The job's identifier: its own, or the one that its worker derived."""
    custom_id: str | None = None
    """The job's `custom_id`, unchanged."""
    model_id: str | None = None
    """The job's `model_id`; where absent, the name of the engine's model, or null if the engine has none."""
    outcome: Outcome
    """The end of the job."""
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
    """Places in the text that rest on sources."""
    notes: list[str] = Field(default_factory=list)
    """Notes for the reader, such as a source that was left out, and the reason."""
    usage: Usage | None = None
    """Tokens; absent where nothing was generated."""
    finish_reason: Literal["stop", "length", "abort", "content_filter", "tool_calls", "repetition", "other"] | None = (
        None
    )
    """The reason for the end of generation: `stop` (by itself), `length` (at `max_tokens`) or `abort` (from outside).

    After any other reason the outcome is `failed`, its error's code `unfinished`, and there is no text: a filter held
    the answer back, the model called a tool instead, it repeated itself, or the engine gave a reason that is not known.
    """
    timings: Timings | None = None
    """Milliseconds of each phase; absent where no generation came to its end."""
    engine: str | None = None
    """The engine that generated the answer, for example `vllm`."""
    error: ResultError | None = None
    """Present unless the outcome is `succeeded`."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """The job's metadata, unchanged."""
    created_at: int
    """Unix seconds."""
