"""Grounds a job: reads the job's sources, and puts their evidence before the question.

The engine may rewrite a conversation's last question ("How do they work?") for the web search. A rewriting is one short
generation, bounded in tokens and seconds. If it fails, the question stays as it is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final, Literal

from schemas.codec import ReceivedJob
from schemas.job import MAX_JOB_BYTES, Job, Message, ResponseFormat, Sources
from telemetry.clock import Clock, Deadline
from telemetry.metrics import Metrics
from workers.engines.base import Completion, Engine, EngineDied, EngineError, GenerationRequest, PromptTooLong
from workers.engines.body import message_of, plain_text, user_message
from workers.enrichment.answering.grounding import ground
from workers.enrichment.answering.profile import Profile, UnknownProfile
from workers.enrichment.choosing.rank import room_for_sources
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence, NothingFound
from workers.enrichment.search.words import MAX_QUESTION_CHARS
from workers.enrichment.settings import BY_ENGINE, ENTAILMENT_SETTING, EnrichmentSettings
from workers.enrichment.turns import Asker, Turns
from workers.inference.context import Finish, JobContext, Missing
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import JobIsOver, Lifetimes
from workers.inference.observed import Phases
from workers.inference.pace import EnginePace

UNCHANGED: Final = "the question was not rewritten: "
_NO_LINE: Final = f"the model's answer is not a single line of at most {MAX_QUESTION_CHARS} characters"
_MAX_TURNS: Final = 6
_TURN_CHARS: Final = 1_000
"""The engine reads a conversation's last _MAX_TURNS turns, and the last _TURN_CHARS characters of each."""
_ORDER: Final = (
    "Rewrite the last question of the conversation below so that it can be understood without the conversation: "
    "put names in the place of words such as `it`, `they` or `there`. "
    "Answer with the question alone, on one line, in its own language.\n\n"
)


Spend = Callable[[int], None]
"""Counts tokens of a job in its tenant's share of the engine."""


class SideRequests:
    """Short questions about a job to the worker's engine, beside the job's own: `name` tells their kind."""

    def __init__(self, engine: Engine, name: Literal["rewrite", "check"], metrics: Metrics) -> None:
        self._engine = engine
        self._name = name
        self._tokens = metrics.tokens.labels(name)
        self._numbers = itertools.count()

    async def answered(self, received: ReceivedJob, content: str, max_tokens: int, spend: Spend) -> Completion:
        """Return the greedy answer of the job's model to this user's message, and count its tokens, also by `spend`.

        Raises EngineError.
        """
        request = GenerationRequest(
            request_id=f"{received.webhook_id}-{self._name}-{next(self._numbers)}",
            body={"messages": [user_message(content)], "max_tokens": max_tokens, "temperature": 0.0},
            temperature_is_default=True,
            model_id=received.job.model_id,
        )
        completion = await self._engine.generate(request)
        tokens = completion.prompt_tokens + completion.completion_tokens
        self._tokens.inc(tokens)
        spend(tokens)
        return completion


class Rewriter:
    """Rewrites questions on the worker's engine."""

    def __init__(self, engine: Engine, settings: EnrichmentSettings, metrics: Metrics) -> None:
        self._requests = SideRequests(engine, "rewrite", metrics)
        self._settings = settings

    def wants(self, job: Job, profile_rewrites: bool) -> bool:
        """True if the job wants a rewriting, and its conversation has more than one question.

        If a job does not set the option, its profile decides.
        """
        wish = job.sources.rewrite if job.sources is not None else False
        if not (profile_rewrites if wish is None else wish):
            return False
        return sum(message.role == "user" for message in job.messages or ()) > 1

    async def rewritten(self, received: ReceivedJob, question: str, seconds: float, spend: Spend) -> tuple[str, str]:
        """Return the rewritten question and a note; the original question if the rewriting fails. Raises EngineDied.

        `spend` is called with the tokens of the rewriting.
        """
        try:
            async with asyncio.timeout(min(seconds, self._settings.rewrite_seconds)):
                asked, tokens = _order(received), self._settings.rewrite_tokens
                completion = await self._requests.answered(received, asked, tokens, spend)
        except TimeoutError:
            return question, f"{UNCHANGED}the model was late"
        except EngineDied:
            raise
        except EngineError:
            return question, f"{UNCHANGED}the model gave no answer"
        said = _one_line(completion)
        if said is None:
            return question, f"{UNCHANGED}{_NO_LINE}"
        return said, f"the question was rewritten for the search: {said}"


def _order(received: ReceivedJob) -> str:
    """Return the order to rewrite the last question of the job's conversation."""
    turns = [message for message in received.job.messages or () if message.role in ("user", "assistant")]
    while turns and turns[-1].role != "user":
        turns.pop()
    said = [message_of(one) | {"content": one.text[-_TURN_CHARS:]} for one in turns[-_MAX_TURNS:]]
    return f"{_ORDER}{plain_text(said).removesuffix('Assistant:').rstrip()}"


def _one_line(completion: Completion) -> str | None:
    """Return the answer if it is one line; None if the answer was cut off, has several lines or is too long."""
    text = completion.text.strip()
    is_whole = completion.finish_reason == "stop" and "\n" not in text and 0 < len(text) <= MAX_QUESTION_CHARS
    return text if is_whole and text.isprintable() else None


MOST_READ_CHARS: Final = MAX_JOB_BYTES
"""Cap on the characters of a question or chat that are searched for words and links: as many as the largest record has.

A payload may be many times longer, and reading 8 MiB took the event loop 12 s."""
CUT_NOTE = "passages were left out: the prompt was longer than the model's window"


@dataclass(slots=True)
class GroundedRequest:
    """A job's prompt or messages after enrichment, with the evidence before the question."""

    prompt: str | None
    messages: tuple[Message, ...] | None
    evidence: Evidence | None
    """None for a job without sources."""
    profile: Profile | None = None
    """None if and only if `evidence` is None."""
    response_format: ResponseFormat | None = None
    """The job's response format, or else its profile's."""

    @property
    def temperature(self) -> float | None:
        """The profile's temperature, for a job that sets no temperature; None if the profile sets none either."""
        return self.profile.temperature if self.profile is not None else None

    @property
    def wants_json(self) -> bool:
        """True if the answer must be JSON."""
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def chars(self) -> int:
        """Characters of the prompt, or of all messages together."""
        return len(self.prompt or "") + sum(len(message.text) for message in self.messages or ())


class Grounder:
    """Enriches jobs ahead of the engine: at most `enrich_ahead` at once, to bound the memory for their pages.

    Tenants take turns, and one tenant has at most three quarters of the `enrich_ahead` places.
    """

    def __init__(
        self,
        engine: Engine,
        enricher: Enricher,
        lifetimes: Lifetimes,
        pace: EnginePace,
        phases: Phases,
        clock: Clock,
        enrich_ahead: int,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._enricher = enricher
        self._lifetimes = lifetimes
        self._pace = pace
        self._phases = phases
        self._clock = clock
        self._turns = Turns(enrich_ahead, kept=enrich_ahead // 4)
        self._rewriter = Rewriter(engine, enricher.settings, metrics)

    async def ground(self, job: JobContext, sources: Sources, spend: Spend) -> Finish | Missing | None:
        """Read the sources, and set the job's request with their evidence. `spend` is called with a rewriting's tokens.

        The way ends for an unknown profile. Return Missing if the worker lacks the profile's judge, if required sources
        yield no evidence, or if the job is cancelled or expires meanwhile.
        """
        received = job.received
        if job.asked is not None and job.asked.profile is not None and job.asked.profile.name == sources.profile:
            return None  # the sources were read for another model of a rollout
        try:
            profile = self._enricher.profile(sources.profile)
        except UnknownProfile as unknown:
            return Finish(letter=invalid_job(received, "sources.profile", str(unknown)))
        if "entailment" in profile.requires and not self._enricher.has_judge:
            needs = f"the profile {sources.profile} needs a judge of answers, and this worker has none"
            fix = f"set {ENTAILMENT_SETTING} to a cross-encoder's folder or to {BY_ENGINE}"
            return Missing("profile_unavailable", f"{needs}: {fix}")
        question = _ends(_question_of(received.job))
        try:
            began = self._phases.now()
            with self._pace.enriching(), self._phases.span("enrich", received):
                evidence = await self._evidence(received, sources, profile, spend)
                said = _ends("\n".join(message.text for message in received.job.messages or ()))
                evidence = replace(evidence, question=question, conversation=said)
        except NothingFound as nothing:
            return Missing("no_sources", str(nothing))
        job.fetched(self._phases.now() - began)
        job.asked = _with_evidence(received, evidence, profile)
        return None

    async def _evidence(self, received: ReceivedJob, sources: Sources, profile: Profile, spend: Spend) -> Evidence:
        """Return the evidence from the job's sources. Raises NothingFound as `grounded` does."""
        try:
            return await self._lifetimes.until_cancelled(
                received, lambda: self._evidence_in_turn(received, sources, profile, spend)
            )
        except JobIsOver:
            raise NothingFound(()) from None

    async def _evidence_in_turn(
        self, received: ReceivedJob, sources: Sources, profile: Profile, spend: Spend
    ) -> Evidence:
        """Wait for the job's turn among the jobs in enrichment; return the evidence. Raises NothingFound."""
        async with AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(max(0.0, self._lifetimes.remaining(received))):
                    await turn.enter_async_context(self._turns.place(Asker(received.tenant)))
            except TimeoutError:
                raise NothingFound(()) from None
            deadline = Deadline.after(self._clock, max(0.0, self._lifetimes.remaining(received)))
            question = _ends(_question_of(received.job))
            notes: tuple[str, ...] = ()
            if self._rewriter.wants(received.job, profile.rewrite):
                question, note = await self._rewriter.rewritten(received, question, deadline.remaining, spend)
                notes = (note,)
            evidence = await self._enricher.enrich(
                profile.applied(sources, question),
                question,
                deadline=deadline,
                tenant=received.tenant,
                room_tokens=room_for_sources(received.job, profile.instructions, self._engine.context_tokens),
            )
            return replace(evidence, notes=(*notes, *evidence.notes))


def without_evidence(received: ReceivedJob) -> GroundedRequest:
    """Return the request of a job without sources."""
    job = received.job
    messages = tuple(job.messages) if job.messages is not None else None
    return GroundedRequest(job.prompt, messages, None, response_format=job.response_format)


def with_less_evidence(received: ReceivedJob, asked: GroundedRequest, too_long: PromptTooLong) -> GroundedRequest:
    """Return the request with less evidence. The instructions on how to read the evidence stay whole.

    Raises NothingFound if required sources have no room at all. Raises `too_long` for a request without evidence.
    """
    if asked.evidence is None or asked.profile is None or received.job.sources is None:
        raise too_long
    beyond = asked.chars * (1 - too_long.fits)
    evidence = asked.evidence.shortened(asked.evidence.chars - beyond)
    evidence = replace(evidence, notes=tuple(dict.fromkeys((*evidence.notes, CUT_NOTE))))
    wanted = asked.profile.applied(received.job.sources, evidence.question)
    if wanted.required and not evidence.sources:
        raise NothingFound(evidence.notes)
    return _with_evidence(received, evidence, asked.profile)


def _question_of(job: Job) -> str:
    """Return the question: the prompt, else the user's last message, else the last message of any role."""
    if job.prompt is not None:
        return job.prompt
    messages = job.messages or []
    by_user = [message.text for message in messages if message.role == "user"]
    return by_user[-1] if by_user else messages[-1].text


def _ends(text: str) -> str:
    """Return the text.

    Of a text longer than MOST_READ_CHARS, return only the start and the end, where people put their questions.
    """
    half = MOST_READ_CHARS // 2
    return text if len(text) <= MOST_READ_CHARS else f"{text[:half]}\n\n{text[-half:]}"


def _with_evidence(received: ReceivedJob, evidence: Evidence, profile: Profile) -> GroundedRequest:
    """Return the job's prompt or messages with this evidence before the question."""
    job = received.job
    asked = job.prompt if job.messages is None else tuple(job.messages)
    grounded = ground(asked, evidence, instructions=profile.instructions)
    form = job.response_format or profile.answer_format(len(evidence.sources))
    return GroundedRequest(grounded.prompt, grounded.messages, evidence, profile, form)
