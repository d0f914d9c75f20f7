"""Jobs and results on the wire, written by `python -m scripts.publish` from the fleet's schemas.

A field of a job that is None has the fleet's default. Fields of a result that are absent have their default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One prompt with its options, as the producer wrote it."""

    job_id: str | None = None
    """The job's name within its tenant. If absent, the name is derived from the record's place in the topic."""
    model_id: str | None = None
    """A model's name or alias. If absent, the worker uses its own model."""
    prompt: str | None = None
    """The question as one text. Set either `prompt` or `messages`. The text is one user message, unless `raw` is
    set."""
    raw: bool | None = None
    """If true, the model continues `prompt` as it stands. A model without a chat template always continues the
    prompt."""
    messages: Sequence[Mapping[str, Any]] | None = None
    """The question as a chat. Set either `messages` or `prompt`."""
    embed: Sequence[str] | None = None
    """Texts to be embedded, instead of a question. The model must be one that gives embeddings."""
    dimensions: int | None = None
    """How many numbers each embedding has, for models with several lengths. Allowed only with `embed`."""
    rerank: Mapping[str, Any] | None = None
    """Documents to be ranked for a query, instead of a question. The model must be one that ranks or embeds."""
    score: Mapping[str, Any] | None = None
    """Pairs of texts to be scored, instead of a question. The model must be one that ranks or embeds."""
    classify: Sequence[str] | None = None
    """Texts to be labelled, instead of a question. The model must be one that classifies."""
    payload_url: str | None = None
    """The URL of a JSON document with the question, for a question that is too large for a record. The URL is an https
    URL, or `s3://BUCKET/KEY` if the operator lists the bucket. The document is an object with `prompt`, `messages`,
    `embed`, `rerank`, `score` or `classify`. It may have `sources`, `response_format`, and `tools` with their options.
    Each of these fields is in the record or in the document; all other fields stay in the record."""
    payload_sha256: str | None = None
    """The SHA-256 of the document's bytes, 64 hexadecimal digits. Allowed only with `payload_url`. If the document has
    another hash, the job is rejected."""
    context_window: int | None = None
    """The maximum number of tokens of prompt and answer together; a longer prompt is cut at its start."""
    temperature: float | None = None
    """The randomness of sampling; 0 is greedy. Where absent, the profile's value is used, which is 0 in Postback's own
    profiles. If the profile has none, the model's own value is used: vLLM reads it from `generation_config.json`, or
    uses 0 if that file has none."""
    top_p: float | None = None
    """Nucleus sampling: each token is drawn from the likeliest tokens that together have this probability. If absent,
    the model's own value is used."""
    min_p: float | None = None
    """The least probability of a token that may be drawn, as a fraction of the likeliest token's probability. If
    absent, the model's own value is used. Only vLLM and servers that know the parameter take it."""
    stop: Sequence[str] | None = None
    """Texts that end the answer and are not part of it."""
    max_tokens: int | None = None
    """The maximum number of tokens that the answer may have."""
    seed: int | None = None
    """The seed of random sampling."""
    n: int | None = None
    """The number of answers, which are the result's `choices`. More than one answer needs a temperature above 0. The
    product of `n`, `max_tokens` and 1 + `top_logprobs` is at most 131,072."""
    logprobs: bool | None = None
    """If true, the result has the log-probability of each token of the answer."""
    top_logprobs: int | None = None
    """The number of likeliest tokens that the result lists at each place of the answer. Allowed only with
    `logprobs`."""
    response_format: Mapping[str, Any] | None = None
    """The answer's form. If absent, the answer is free text."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may call. The model's calls are the result's `tool_calls`; no worker runs them."""
    tool_choice: str | Mapping[str, Any] | None = None
    """`auto` (the model decides), `none`, `required` (at least one call) or one function by name. Allowed only with
    `tools`. If absent, the model decides."""
    parallel_tool_calls: bool | None = None
    """If false, the model makes one call at most; if absent, the model decides. Allowed only with `tools`."""
    reasoning: Mapping[str, Any] | None = None
    """Bounds of the reasoning of a model that reasons; if absent, the model decides."""
    adapter: str | None = None
    """The name of a LoRA adapter in the registry."""
    callback_url: str | None = None
    """The URL to which the signed result is POSTed; if absent, the result is only stored."""
    sources: Mapping[str, Any] | None = None
    """Sources that the worker reads before the model answers. If absent, the worker reads none."""
    priority: int | None = None
    """Among a tenant's waiting jobs, those with the highest priority run first."""
    not_before: float | None = None
    """The time before which the job does not start, in Unix seconds. If absent, the job starts at once. The job starts
    up to five seconds later, or when a worker is free. `ttl_seconds` counts from this time, and the job must end
    within six days after it was sent."""
    ttl_seconds: float | None = None
    """Seconds after the record's timestamp, or after `not_before`, until the job ends as `expired`. At most six days,
    because lanes keep records for seven days."""
    metadata: Mapping[str, str] | None = None
    """Returned unchanged in the result."""
    custom_id: str | None = None
    """The producer's own name for the job, returned in the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerSupport:
    """The support of a whole answer, which is as supported as its worst sentence."""

    support: str
    """`all` if sources support each sentence with a claim; `contradicted` if a source contradicts one."""
    sentences: tuple[JudgedSentence, ...] = ()
    """The sentences that lack support, in order."""
    not_checked: tuple[str, ...] = ()
    """The checks that were not made: `entailment` without a judge, `entailment: time` if its time was up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalledFunction:
    """A call's function, with its arguments."""

    name: str
    """The function's name, as the model wrote it."""
    arguments: str
    """The arguments: a JSON object by the function's schema, unless the call is cut off. The model wrote the
    arguments: check their values before use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Citation:
    """A cited place in `text`, with its source. `start` and `end` count Unicode code points of `text`."""

    start: int
    """The place's first code point."""
    end: int
    """The first code point after the place."""
    source: str
    """The source's identifier, as in `sources`; `[n]` where no source has the cited number n."""
    support: str
    """The closeness of the source's text to the sentence."""
    quote: Quote | None = None
    """The source's words, or its nearest sentence; absent without support."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSentence:
    """A sentence of an answer, or an item of its evidence chain, that no source supports."""

    start: int
    """The sentence's first code point in `text`."""
    end: int
    """The first code point after the sentence."""
    support: str
    """`unsupported`, `contradicted` or `dangling`."""
    missing: tuple[str, ...] = ()
    """The figures, names and quotations of the sentence that its sources lack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """The label of a text of `classify`."""

    label: str | None = None
    """The name of the likeliest class; absent where the model names no classes."""
    probabilities: tuple[float, ...]
    """The probability of each class, in the order of the model's classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Logprob:
    """A token, and the natural logarithm of its probability at one place of the answer."""

    token: str = ""
    """The token's text; a part of a character is shown as U+FFFD."""
    logprob: float = 0.0
    """The logarithm, rounded to six places, and at least -9999."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """Words of a source and the text around them, as in a TextQuoteSelector (W3C Web Annotation Data Model, 4.2.4)."""

    exact: str
    """The words as the source writes them; links are replaced by `(link removed)`."""
    prefix: str = ""
    """Up to 32 code points of the source's text before the words."""
    suffix: str = ""
    """Up to 32 code points of the source's text after the words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """A document of `rerank` with its score."""

    index: int
    """The document's index in the job's `documents`, from 0 on."""
    score: float
    """The document's relevance to the query; a higher score is better. The range depends on the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultChoice:
    """One of several answers of a job with `n` above 1."""

    index: int = 0
    """The answer's number, from 0."""
    text: str = ""
    """The answer; empty where the model refuses to answer."""
    refusal: str | None = None
    """The model's words where it refuses to answer; absent where it answers."""
    reasoning: str | None = None
    """The model's reasoning before the answer; absent where there is none."""
    finish_reason: str = "stop"
    """The reason for the end of generation: `stop` (by itself), `length` (at `max_tokens`) or `tool_calls`."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """The calls that this answer asks for; absent where there are none."""
    confidence: float | None = None
    """The answer's confidence, computed like the confidence of the whole result."""
    citations: tuple[Citation, ...] = ()
    """Places in this answer's text that rest on sources."""
    answer: AnswerSupport | None = None
    """The support of this answer as a whole; absent for a job without sources."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """The log-probabilities of this answer's tokens; absent where the job does not ask for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultError:
    """The reason why a job did not succeed: `code` is stable and for programs, `message` is for people."""

    code: str
    """A stable code for programs."""
    message: str
    """The reason in a sentence for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreeningFinding:
    """Matches of one rule in one field. No finding contains the matched text."""

    rule: str
    """The rule's name in the operator's file."""
    kind: str
    """The matcher: `regex`, `words`, `classifier`, or a kind of personal data such as `card` or `email`. A classifier
    that gives no answer is `unavailable`."""
    verdict: str
    """The rule's verdict."""
    field: str
    """The job's field with the matches."""
    count: int
    """Number of matches; for `redact`, number of markers in the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceDetails:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Milliseconds spent in each phase."""

    queued_ms: float = 0.0
    """Time from the record's timestamp until the worker began the job."""
    enrich_ms: float = 0.0
    """Time for reading and choosing sources."""
    infer_ms: float = 0.0
    """Time for generating the answer, including the wait in the engine's queue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """A token of the answer, with the likeliest tokens at its place."""

    token: str = ""
    """The token's text; a part of a character is shown as U+FFFD."""
    logprob: float = 0.0
    """The logarithm, rounded to six places, and at least -9999."""
    top_logprobs: tuple[Logprob, ...] | None = None
    """The likeliest tokens, the likeliest first; absent where the job does not ask for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call that the model asks for."""

    id: str
    """The call's name within the conversation; a message of the role `tool` repeats it."""
    type: str = "function"
    """The kind of tool."""
    function: CalledFunction
    """The function and its arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Numbers of tokens that the engine read and generated."""

    prompt_tokens: int = 0
    """Tokens of the prompt, sources included."""
    completion_tokens: int = 0
    """Tokens that were generated."""
    total_tokens: int = 0
    """The sum of `prompt_tokens` and `completion_tokens`."""
    cached_tokens: int | None = None
    """Tokens of the prompt that the engine found in its prefix cache; absent where the engine does not report them."""
    cost: float | None = None
    """The price of these tokens in units of `currency`; absent where the model registry has no price for the model."""
    currency: str | None = None
    """The currency of `cost`, an ISO 4217 code."""
    reasoning_tokens: int | None = None
    """Tokens of the reasoning, a part of `completion_tokens`; absent where there is none or the engine reports
    none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of one job."""

    job_id: str
    """The job's `job_id`, or the identifier that its worker derived."""
    custom_id: str | None = None
    """The job's `custom_id`, unchanged."""
    model_id: str | None = None
    """The job's `model_id`. If the job has none, this is the name of the engine's model, or of an engine without a
    model."""
    outcome: str
    """The end of the job."""
    text: str | None = None
    """The answer; absent where the model refuses to answer."""
    refusal: str | None = None
    """The model's words where it refuses to answer, as OpenAI's API reports them; absent where it answers. The job has
    then succeeded, since the engine did its work: read `refusal` before `text`. The refusal of a model that says so in
    an ordinary answer is in `text`."""
    embeddings: tuple[tuple[float, ...], ...] | None = None
    """The embeddings of the job's `embed`, in the same order; absent for a job with a question."""
    ranks: tuple[Rank, ...] | None = None
    """The documents of the job's `rerank`, the best first."""
    scores: tuple[float, ...] | None = None
    """The score of each document of the job's `score`, in the same order. The range depends on the model."""
    labels: tuple[Label, ...] | None = None
    """The label of each text of the job's `classify`, in the same order."""
    reasoning: str | None = None
    """The model's reasoning before the answer; absent where there is none. Citations and `confidence` leave the
    reasoning out."""
    confidence: float | None = None
    """exp(mean log-probability of the answer's tokens): the geometric mean of the tokens' probabilities. If the job
    asked for sources, the mean is multiplied by (1 + s) / 2. Here s is the share of the answer's sentences, or of the
    items in its evidence chain, that a source supports (`exact`, `fuzzy`, `entailed` or `lexical`). With no support,
    the confidence is half the mean."""
    sources: tuple[str, ...] = ()
    """Identifiers of the sources that the answer used, in the order of their first use."""
    source_details: tuple[SourceDetails, ...] = ()
    """Details of each source in `sources`, in the same order."""
    citations: tuple[Citation, ...] = ()
    """Places in the text that rest on sources."""
    answer: AnswerSupport | None = None
    """The support of the answer as a whole; absent for a job without sources."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """The calls of the job's `tools` that the model asks for; absent where there are none. No worker runs them."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """The log-probabilities of the answer's tokens, as generated, without the reasoning. They are absent if the job
    does not ask for them, or the engine gives none. With `choices`, each choice has its own log-probabilities."""
    choices: tuple[ResultChoice, ...] | None = None
    """All answers of a job with `n` above 1; absent for one answer. `text`, `citations` and similar fields are those
    of the first answer. An answer that the job cannot use, such as one that is not the requested JSON, is left out
    with a note."""
    notes: tuple[str, ...] = ()
    """Notes for the reader, such as a source that was left out, and the reason."""
    screening: tuple[ScreeningFinding, ...] | None = None
    """The input filter's findings; absent if no rule matches the job."""
    usage: Usage | None = None
    """Numbers of tokens; absent where no answer was generated."""
    finish_reason: str | None = None
    """The reason for the end of generation. Four reasons are normal: `stop` (by itself), `length` (at `max_tokens`),
    `tool_calls` (for calls of the job's tools) and `abort` (from outside). After any other reason the outcome is
    `failed`, the error's code is `unfinished`, and the result has no text. The other reasons are: a filter withheld
    the answer, the model repeated itself or called a tool that the job does not have, or the engine's reason is
    unknown."""
    timings: Timings | None = None
    """Milliseconds of each phase; absent where no generation finished."""
    engine: str | None = None
    """The engine that generated the answer, for example `vllm`."""
    error: ResultError | None = None
    """The reason why the job did not succeed; absent if it did."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The job's metadata, unchanged except for markers such as `[redacted:card]` of the operator's input filter."""
    created_at: int
    """The time at which the result was made, in Unix seconds."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole JSON object of the result, with members that this version of the library does not know."""

    @property
    def succeeded(self) -> bool:
        """True if the job has an answer."""
        return self.outcome == "succeeded"
