"""The record of `model_requests.shadow`: a job with its grounded prompt and the primary's answer."""

from __future__ import annotations

import json
from typing import Final, Self

from pydantic import Field, ValidationError

from schemas.bounded import WireModel
from schemas.job import DEFAULT_TENANT, Identifier, Job, Tenant
from schemas.kinds import KINDS
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result, Support
from schemas.rollout.comparison import ObservedAnswer, is_refusal
from schemas.rollout.facts import RolloutId
from workers.enrichment.answering.profile import Profile
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.inference.ground import GroundedRequest
from workers.inference.rollout.difference import Said, Thresholds

MAX_SAMPLE_BYTES: Final = MAX_RESULT_BYTES
NO_PROFILE: Final = "none"
_NUMBERS: Final = {kind.answer for kind in KINDS}
"""The fields of results that hold numbers computed from texts (embeddings, scores, ranks) instead of a text."""
_WITHOUT_SUPPORT: Final = (Support.UNSUPPORTED, Support.DANGLING)


class SampledSource(WireModel):
    """A source as the model saw it."""

    number: int = Field(ge=1, le=10_000)
    id: str
    url: str | None = None
    title: str | None = None
    passages: tuple[str, ...]


class SampledEvidence(WireModel):
    """The evidence in the prompt, by which the candidate's citations are checked."""

    sources: tuple[SampledSource, ...]
    question: str = ""
    conversation: str = ""

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """Return the parts that the check of citations needs, without the fleet's secrets."""
        sources = [
            SampledSource(number=each.number, id=each.id, url=each.url, title=each.title, passages=each.passages)
            for each in evidence.sources
        ]
        return cls(sources=tuple(sources), question=evidence.question, conversation=evidence.conversation)

    def evidence(self) -> Evidence:
        """Return the evidence in the form that the check of citations takes."""
        sources = [NumberedSource(each.number, each.id, each.url, each.title, each.passages) for each in self.sources]
        return Evidence(tuple(sources), question=self.question, conversation=self.conversation)


class ShadowSample(WireModel):
    """A record's value."""

    rollout: RolloutId
    tenant: Tenant = DEFAULT_TENANT
    profile: Identifier = NO_PROFILE
    job: Job
    """The job with its id, the grounded prompt and the candidate's name.

    The job's temperature is 0, and its sources and callback are left out.
    """
    evidence: SampledEvidence | None = None
    primary: ObservedAnswer
    text: str | None = None
    """The primary's answer; absent if it failed."""
    code: str | None = Field(default=None, max_length=64)
    """The error's code if the primary failed."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """The difference of two answers of the primary to this job."""
    again: str | None = None
    """The primary's second answer if it differs from the first, so that the shadow worker can compare both by meaning.

    Absent if one of the answers is no text, or is longer than `MAX_CHARS` in `meaning`.
    """

    @property
    def candidate(self) -> str:
        """The model that has to answer the job."""
        return self.job.model_id or ""

    @property
    def job_id(self) -> str:
        """The job's id within its tenant: the producer's own, or the one derived from the record's place."""
        return self.job.job_id or "unknown"

    def asked(self, profile: Profile | None) -> GroundedRequest:
        """Return the sample's grounded request, with this profile."""
        messages = tuple(self.job.messages) if self.job.messages is not None else None
        evidence = self.evidence.evidence() if self.evidence is not None and profile is not None else None
        return GroundedRequest(self.job.prompt, messages, evidence, 0.0, profile, self.job.response_format)


class InvalidSample(Exception):  # noqa: N818 - named after the record
    """A record that is no sample."""


def write_sample(sample: ShadowSample) -> bytes:
    """Write a record's value."""
    return sample.model_dump_json(exclude_none=True, exclude_defaults=True, by_alias=True).encode()


def read_sample(value: bytes | None) -> ShadowSample:
    """Read a record's value. Raises InvalidSample."""
    try:
        return ShadowSample.model_validate_json(value or b"")
    except ValidationError:
        raise InvalidSample("the value is not a sample of a rollout") from None


def said(result: Result) -> Said:
    """Return the answer of a result, for a comparison. Embeddings, scores and ranks become JSON."""
    numbers = result.model_dump_json(include=_NUMBERS, exclude_none=True) if result.text is None else "{}"
    text = numbers if numbers != "{}" else result.text
    if result.tool_calls is not None:
        calls = [[call.function.name, call.function.arguments] for call in result.tool_calls]
        text = json.dumps([text, calls], ensure_ascii=False)
    return Said(text, result.error.code if result.error is not None else None)


def observed(result: Result, infer_ms: float) -> ObservedAnswer:
    """Return the facts of a result that the guards compare."""
    code = result.error.code if result.error is not None else None
    return ObservedAnswer(
        failed=result.outcome is not Outcome.SUCCEEDED,
        not_json=code == "not_json",
        refused=result.text is not None and is_refusal(result.text),
        cut=result.finish_reason == "length",
        unsupported=code == "unsupported" or any(each.support in _WITHOUT_SUPPORT for each in result.citations),
        infer_ms=infer_ms,
        tokens=result.usage.completion_tokens if result.usage is not None else 0,
    )


def thresholds_of(profile: Profile | None) -> Thresholds:
    """Return the bounds within which two answers of a profile's jobs are treated as equal."""
    if profile is None:
        return Thresholds()
    return Thresholds(profile.equal_numbers, profile.equal_similarity, profile.equal_meaning)
