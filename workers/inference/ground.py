"""Grounds a job: reads the job's sources, and puts their evidence before the question."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final

from schemas.codec import ReceivedJob
from schemas.job import MAX_JOB_BYTES, Message, ResponseFormat, Sources
from telemetry.clock import Clock, Deadline
from telemetry.metrics import Metrics
from workers.engines.base import Engine, PromptTooLong
from workers.engines.prompts import last_user_text
from workers.enrichment.answering.grounding import ground
from workers.enrichment.answering.profile import Profile, UnknownProfile
from workers.enrichment.choosing.tokens import room_for_sources
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence, NothingFound
from workers.enrichment.turns import Asker, Turns
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import JobIsOver, Lifetimes
from workers.inference.pace import EnginePace
from workers.inference.phases import Phases
from workers.inference.rewriting import Rewriter
from workers.inference.side_request import Spend

MOST_READ_CHARS: Final = MAX_JOB_BYTES
"""Cap on the characters of a question or chat that are searched for words and links: as many as the largest record has.

A payload may be many times longer, and reading 8 MiB took the event loop 12 s."""
CUT_NOTE = "passages were left out: the prompt was longer than the model's window"


@dataclass(frozen=True, slots=True)
class GroundedRequest:
    """A job's prompt or messages after enrichment, with the evidence before the question."""

    prompt: str | None
    messages: tuple[Message, ...] | None
    evidence: Evidence | None
    """None for a job without sources."""
    enrich_ms: float
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

    async def grounded(self, received: ReceivedJob, spend: Spend) -> GroundedRequest:
        """Read the job's sources, if the job has any, and return its request.

        `spend` is called with a rewriting's tokens.

        Raises InvalidJob for an unknown profile. Raises NothingFound if required sources yield no evidence, or if the
        job is cancelled or expires meanwhile.
        """
        job = received.job
        messages = tuple(job.messages) if job.messages is not None else None
        if job.sources is None:
            return GroundedRequest(job.prompt, messages, None, 0.0, response_format=job.response_format)
        profile = self._profile(received, job.sources.profile)
        question = _ends(last_user_text(job))
        with self._pace.enriching(), self._phases.timed("enrich", received) as phase:
            evidence = await self._evidence(received, job.sources, profile, spend)
            said = _ends("\n".join(message.text for message in messages or ()))
            evidence = replace(evidence, question=question, conversation=said)
        return _with_evidence(received, evidence, profile, phase.ms)

    def _profile(self, received: ReceivedJob, name: str) -> Profile:
        """Return the profile of this name. Raises InvalidJob if no profile has this name."""
        try:
            return self._enricher.profile(name)
        except UnknownProfile as unknown:
            raise invalid_job(received, "sources.profile", str(unknown)) from None

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
            question = _ends(last_user_text(received.job))
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
    return _with_evidence(received, evidence, asked.profile, asked.enrich_ms)


def _ends(text: str) -> str:
    """Return the text.

    Of a text longer than MOST_READ_CHARS, return only the start and the end, where people put their questions.
    """
    half = MOST_READ_CHARS // 2
    return text if len(text) <= MOST_READ_CHARS else f"{text[:half]}\n\n{text[-half:]}"


def _with_evidence(received: ReceivedJob, evidence: Evidence, profile: Profile, enrich_ms: float) -> GroundedRequest:
    """Return the job's prompt or messages with this evidence before the question."""
    job = received.job
    asked = job.prompt if job.messages is None else tuple(job.messages)
    grounded = profile.instructed(ground(asked, evidence))
    form = job.response_format or profile.answer_format(len(evidence.sources))
    return GroundedRequest(grounded.prompt, grounded.messages, evidence, enrich_ms, profile, form)
