"""Results of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Numbers of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int | None = None
    """Tokens of the prompt that came from the engine's prefix cache; None if the engine does not report them."""
    cost: float | None = None
    """The price of the job, if the fleet's registry of models has prices."""
    currency: str | None = None
    reasoning_tokens: int | None = None
    """Tokens of the reasoning, which are also counted in `completion_tokens`."""


@dataclass(frozen=True, slots=True)
class SourceQuote:
    """Words of a source, and up to 32 code points before and after them (W3C TextQuoteSelector)."""

    exact: str
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class CitedPlace:
    """A place in the answer that rests on a source. `start` and `end` count Unicode code points."""

    start: int
    end: int
    source: str
    """The source's identifier, as in `sources`."""
    support: str
    """`exact`, `fuzzy`, `entailed`, `lexical`, `unsupported`, `contradicted` or `dangling`."""
    quote: SourceQuote | None = None
    """The words of the source that are most similar to the place; None if the source does not support the place."""


@dataclass(frozen=True, slots=True)
class LackingSentence:
    """A sentence of an answer that no source supports."""

    start: int
    end: int
    support: str
    """`unsupported`, `contradicted` or `dangling`."""
    missing: tuple[str, ...] = ()
    """The figures, names and quotations of the sentence that its sources lack."""


@dataclass(frozen=True, slots=True)
class SupportOfAnswer:
    """The support of a whole answer, which is as supported as its worst sentence."""

    support: str
    """`all`, `some`, `none` or `contradicted`."""
    sentences: tuple[LackingSentence, ...] = ()
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FunctionOfCall:
    """A function's name and its arguments. The model wrote the arguments as JSON, so check them before use."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallOfTool:
    """A call that the model asks for. A message of the role `tool` answers the call by the call's `id`."""

    id: str
    function: FunctionOfCall
    type: str = "function"


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token, and the natural logarithm of its probability."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """A token of the answer, with the likeliest tokens at its place."""

    token: str
    logprob: float
    top_logprobs: tuple[LikelyToken, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerChoice:
    """One of several answers of a job with `n` above 1."""

    index: int
    text: str
    finish_reason: str
    refusal: str | None = None
    reasoning: str | None = None
    confidence: float | None = None
    citations: tuple[CitedPlace, ...] = ()
    answer: SupportOfAnswer | None = None
    tool_calls: tuple[CallOfTool, ...] = ()
    logprobs: tuple[AnswerToken, ...] | None = None


@dataclass(frozen=True, slots=True)
class UsedSource:
    """A source that the answer used."""

    id: str
    url: str | None = None
    canonical_url: str | None = None
    title: str | None = None
    published: str | None = None
    """The date of publication in ISO 8601, as exact as it is known."""
    doi: str | None = None
    read_by: str | None = None
    """`ocr` if a program read the text from pictures, so the text may have wrong characters."""


@dataclass(frozen=True, slots=True)
class JobFailure:
    """The reason why a job did not succeed: `code` is for programs, `message` for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document of `rerank` with its score."""

    index: int
    """The document's index in the job's `documents`, from 0 on."""
    score: float
    """A higher score is better."""


@dataclass(frozen=True, slots=True)
class TextLabel:
    """The label of a text of `classify`."""

    probabilities: tuple[float, ...]
    """The probability of each class, in the order of the model's classes."""
    label: str | None = None
    """The name of the likeliest class; None where the model names no classes."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one job. Source: the fleet's published JSON Schema of results."""

    job_id: str
    outcome: str
    """`succeeded`, `failed`, `expired`, `cancelled` or `rejected`."""
    created_at: int
    """Unix seconds."""
    custom_id: str | None = None
    model_id: str | None = None
    text: str | None = None
    """The answer; None where the model refuses to answer."""
    refusal: str | None = None
    """The model's words where it refuses to answer; the job has then succeeded."""
    embeddings: tuple[tuple[float, ...], ...] | None = None
    """The embeddings of the job's `embed`, in the same order."""
    ranks: tuple[RankedDocument, ...] | None = None
    """The documents of the job's `rerank`, the best first."""
    scores: tuple[float, ...] | None = None
    """The scores of the documents of the job's `score`, in the same order."""
    labels: tuple[TextLabel, ...] | None = None
    """The labels of the texts of the job's `classify`, in the same order."""
    reasoning: str | None = None
    """The model's reasoning before the answer."""
    tool_calls: tuple[CallOfTool, ...] = ()
    """The calls of the job's `tools` that the model asks for."""
    choices: tuple[AnswerChoice, ...] | None = None
    """All answers of a job with `n` above 1."""
    logprobs: tuple[AnswerToken, ...] | None = None
    """The log-probabilities of the answer's tokens; with `choices`, each choice has its own."""
    confidence: float | None = None
    """A number from 0 to 1."""
    sources: tuple[str, ...] = ()
    """Identifiers of the sources that the answer used, in the order of their first use."""
    source_details: tuple[UsedSource, ...] = ()
    citations: tuple[CitedPlace, ...] = ()
    answer: SupportOfAnswer | None = None
    """The support of the answer as a whole; None for a job without sources."""
    notes: tuple[str, ...] = ()
    """Notes for the reader, such as a source that was left out."""
    usage: TokenUsage | None = None
    finish_reason: str | None = None
    """`stop` or `length`, among others."""
    engine: str | None = None
    error: JobFailure | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The job's metadata."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole JSON object of the result, with members that this version of the library does not know."""

    @property
    def succeeded(self) -> bool:
        """True if the job has an answer."""
        return self.outcome == "succeeded"
