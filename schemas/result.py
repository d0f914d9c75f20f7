"""A result: a worker's record on `model_results`. A read_committed reader sees exactly one result per job."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.bounded import WireModel
from schemas.outcome import Outcome
from schemas.screening import ScreeningFinding
from schemas.tools import ToolCall

MAX_RESULT_BYTES = 900 * 1024
"""The largest value, in bytes, of a result's record. A larger answer ends as `failed` with `result_too_large`."""


_MOST: Final = 3.4028234663852886e38
Float32 = Annotated[float, Field(ge=-_MOST, le=_MOST)]
"""A number within the range of float32 (IEEE 754, binary32), the form in which clients ask for embeddings."""


class Support(StrEnum):
    """The support of a source for the sentence that cites the source."""

    EXACT = "exact"
    """The source has the sentence's words unchanged and in order, or its quotation."""
    FUZZY = "fuzzy"
    """A sentence of the source has four fifths of the words in the same order, and every figure and name."""
    ENTAILED = "entailed"
    """A judge found that the source bears the sentence; every figure and name has its equal in the source."""
    LEXICAL = "lexical"
    """The source has most of the words, and every figure and name. No judge read the sentence."""
    UNSUPPORTED = "unsupported"
    CONTRADICTED = "contradicted"
    DANGLING = "dangling"
    """No source has the cited number."""


class Quote(WireModel):
    """Words of a source and the text around them, as in a TextQuoteSelector (W3C Web Annotation Data Model, 4.2.4)."""

    exact: str
    """The words as the source writes them; links are replaced by `(link removed)`."""
    prefix: str = ""
    """Up to 32 code points of the source's text before the words."""
    suffix: str = ""
    """Up to 32 code points of the source's text after the words."""


class Citation(WireModel):
    """A cited place in `text`, with its source. `start` and `end` count Unicode code points of `text`."""

    start: int = Field(ge=0)
    """The place's first code point."""
    end: int = Field(ge=0)
    """The first code point after the place."""
    source: str
    """The source's identifier, as in `sources`; `[n]` where no source has the cited number n."""
    support: Support
    """The closeness of the source's text to the sentence."""
    quote: Quote | None = None
    """The source's words, or its nearest sentence; absent without support."""


class JudgedSentence(WireModel):
    """A sentence of an answer, or an item of its evidence chain, that no source supports."""

    start: int = Field(ge=0)
    """The sentence's first code point in `text`."""
    end: int = Field(ge=0)
    """The first code point after the sentence."""
    support: Support
    """`unsupported`, `contradicted` or `dangling`."""
    missing: list[str] = Field(default_factory=list)
    """The figures, names and quotations of the sentence that its sources lack."""


class AnswerSupport(WireModel):
    """The support of a whole answer, which is as supported as its worst sentence."""

    support: Literal["all", "some", "none", "contradicted"]
    """`all` if sources support each sentence with a claim; `contradicted` if a source contradicts one."""
    sentences: list[JudgedSentence] = Field(default_factory=list)
    """The sentences that lack support, in order."""
    not_checked: list[str] = Field(default_factory=list)
    """The checks that were not made: `entailment` without a judge, `entailment: time` if its time was up."""


class SourceDetails(WireModel):
    """Details of a source that the answer used, as its page or the search service states them."""

    id: str
    """The source's identifier, as in `sources`."""
    url: str | None = None
    """The source's address after redirects; absent for a document of the job itself."""
    canonical_url: str | None = None
    """The page's canonical address (RFC 6596), where it differs and has the same origin."""
    title: str | None = None
    """The page's or the article's title."""
    published: str | None = None
    """The date of publication in ISO 8601, as exact as it is known: `2023`, `2023-05` or `2023-05-17`."""
    doi: str | None = None
    """The article's Digital Object Identifier, as its page claims it; `pmid:` and `arxiv:` sources have it from the
    service."""
    read_by: str | None = None
    """`ocr` where a program read the text from pictures, so that it may have misread characters; absent otherwise."""


class Usage(WireModel):
    """Numbers of tokens that the engine read and generated."""

    prompt_tokens: int = Field(default=0, ge=0)
    """Tokens of the prompt, sources included."""
    completion_tokens: int = Field(default=0, ge=0)
    """Tokens that were generated."""
    total_tokens: int = Field(default=0, ge=0)
    """The sum of `prompt_tokens` and `completion_tokens`."""
    cached_tokens: int | None = Field(default=None, ge=0)
    """Tokens of the prompt that the engine found in its prefix cache; absent where the engine does not report them."""
    cost: float | None = Field(default=None, ge=0)
    """The price of these tokens in units of `currency`; absent where the model registry has no price for the model."""
    currency: str | None = None
    """The currency of `cost`, an ISO 4217 code."""
    reasoning_tokens: int | None = Field(default=None, ge=0)
    """Tokens of the reasoning, a part of `completion_tokens`; absent where there is none or the engine reports none."""


class Logprob(WireModel):
    """A token, and the natural logarithm of its probability at one place of the answer."""

    token: str = ""
    """The token's text; a part of a character is shown as U+FFFD."""
    logprob: float = 0.0
    """The logarithm, rounded to six places, and at least -9999."""


class TokenLogprob(Logprob):
    """A token of the answer, with the likeliest tokens at its place."""

    top_logprobs: list[Logprob] | None = None
    """The likeliest tokens, the likeliest first; absent where the job does not ask for them."""


class ResultChoice(WireModel):
    """One of several answers of a job with `n` above 1."""

    index: int = Field(default=0, ge=0)
    """The answer's number, from 0."""
    text: str = ""
    """The answer; empty where the model refuses to answer."""
    refusal: str | None = None
    """The model's words where it refuses to answer; absent where it answers."""
    reasoning: str | None = None
    """The model's reasoning before the answer; absent where there is none."""
    finish_reason: Literal["stop", "length", "tool_calls"] = "stop"
    """The reason for the end of generation: `stop` (by itself), `length` (at `max_tokens`) or `tool_calls`."""
    tool_calls: list[ToolCall] | None = None
    """The calls that this answer asks for; absent where there are none."""
    confidence: float | None = Field(default=None, ge=0.0, le=1.0)
    """The answer's confidence, computed like the confidence of the whole result."""
    citations: list[Citation] = Field(default_factory=list)
    """Places in this answer's text that rest on sources."""
    answer: AnswerSupport | None = None
    """The support of this answer as a whole; absent for a job without sources."""
    logprobs: list[TokenLogprob] | None = None
    """The log-probabilities of this answer's tokens; absent where the job does not ask for them."""


class Timings(WireModel):
    """Milliseconds spent in each phase."""

    queued_ms: float = Field(default=0.0, ge=0)
    """Time from the record's timestamp until the worker began the job."""
    enrich_ms: float = Field(default=0.0, ge=0)
    """Time for reading and choosing sources."""
    infer_ms: float = Field(default=0.0, ge=0)
    """Time for generating the answer, including the wait in the engine's queue."""


class ResultError(WireModel):
    """The reason why a job did not succeed: `code` is stable and for programs, `message` is for people."""

    code: str
    """A stable code for programs."""
    message: str
    """The reason in a sentence for people."""


class Rank(WireModel):
    """A document of `rerank` with its score."""

    index: int = Field(ge=0)
    """The document's index in the job's `documents`, from 0 on."""
    score: Float32
    """The document's relevance to the query; a higher score is better. The range depends on the model."""


class Label(WireModel):
    """The label of a text of `classify`."""

    label: str | None = None
    """The name of the likeliest class; absent where the model names no classes."""
    probabilities: list[Float32]
    """The probability of each class, in the order of the model's classes."""


class Result(WireModel):
    """The result of one job."""

    job_id: str
    """The job's `job_id`, or the identifier that its worker derived."""
    custom_id: str | None = None
    """The job's `custom_id`, unchanged."""
    model_id: str | None = None
    """The job's `model_id`. If the job has none, this is the name of the engine's model, or of an engine without a
    model."""
    outcome: Outcome
    """The end of the job."""
    text: str | None = None
    """The answer; absent where the model refuses to answer."""
    refusal: str | None = None
    """The model's words where it refuses to answer, as OpenAI's API reports them; absent where it answers.

    The job has then succeeded, since the engine did its work: read `refusal` before `text`. The refusal of a model
    that says so in an ordinary answer is in `text`.
    """
    embeddings: list[list[Float32]] | None = None
    """The embeddings of the job's `embed`, in the same order; absent for a job with a question."""
    ranks: list[Rank] | None = None
    """The documents of the job's `rerank`, the best first."""
    scores: list[Float32] | None = None
    """The score of each document of the job's `score`, in the same order. The range depends on the model."""
    labels: list[Label] | None = None
    """The label of each text of the job's `classify`, in the same order."""
    reasoning: str | None = None
    """The model's reasoning before the answer; absent where there is none. Citations and `confidence` leave the
    reasoning out.
    """
    confidence: float | None = Field(default=None, ge=0.0, le=1.0)
    """exp(mean log-probability of the answer's tokens): the geometric mean of the tokens' probabilities.

    If the job asked for sources, the mean is multiplied by (1 + s) / 2. Here s is the share of the answer's sentences,
    or of the items in its evidence chain, that a source supports (`exact`, `fuzzy`, `entailed` or `lexical`). With no
    support, the confidence is half the mean.
    """
    sources: list[str] = Field(default_factory=list)
    """Identifiers of the sources that the answer used, in the order of their first use."""
    source_details: list[SourceDetails] = Field(default_factory=list)
    """Details of each source in `sources`, in the same order."""
    citations: list[Citation] = Field(default_factory=list)
    """Places in the text that rest on sources."""
    answer: AnswerSupport | None = None
    """The support of the answer as a whole; absent for a job without sources."""
    tool_calls: list[ToolCall] | None = None
    """The calls of the job's `tools` that the model asks for; absent where there are none. No worker runs them."""
    logprobs: list[TokenLogprob] | None = None
    """The log-probabilities of the answer's tokens, as generated, without the reasoning.

    They are absent if the job does not ask for them, or the engine gives none. With `choices`, each choice has its own
    log-probabilities.
    """
    choices: list[ResultChoice] | None = None
    """All answers of a job with `n` above 1; absent for one answer. `text`, `citations` and similar fields are those of
    the first answer.

    An answer that the job cannot use, such as one that is not the requested JSON, is left out with a note.
    """
    notes: list[str] = Field(default_factory=list)
    """Notes for the reader, such as a source that was left out, and the reason."""
    screening: list[ScreeningFinding] | None = None
    """The input filter's findings; absent if no rule matches the job."""
    usage: Usage | None = None
    """Numbers of tokens; absent where no answer was generated."""
    finish_reason: Literal["stop", "length", "abort", "content_filter", "tool_calls", "repetition", "other"] | None = (
        None
    )
    """The reason for the end of generation.

    Four reasons are normal: `stop` (by itself), `length` (at `max_tokens`), `tool_calls` (for calls of the job's tools)
    and `abort` (from outside). After any other reason the outcome is `failed`, the error's code is `unfinished`, and
    the result has no text. The other reasons are: a filter withheld the answer, the model repeated itself or called a
    tool that the job does not have, or the engine's reason is unknown.
    """
    timings: Timings | None = None
    """Milliseconds of each phase; absent where no generation finished."""
    engine: str | None = None
    """The engine that generated the answer, for example `vllm`."""
    error: ResultError | None = None
    """The reason why the job did not succeed; absent if it did."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """The job's metadata, unchanged except for markers such as `[redacted:card]` of the operator's input filter."""
    created_at: int
    """The time at which the result was made, in Unix seconds."""
