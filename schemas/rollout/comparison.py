"""Records of `model_rollouts.comparisons`: observations of a rollout's jobs. One partition gives all readers one order.

A comparison of the shadow step has both models' sides, `differs` and `noise`. A report of the canary step has one side,
that of the model that answered the job.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field, ValidationError

from schemas.bounded import WireModel
from schemas.job import Identifier
from schemas.rollout.facts import RolloutId, Step

MAX_TEXT_CHARS: Final = 4_000
"""Number of characters of each answer's text that a comparison contains, for the report."""
_REFUSAL: Final = re.compile(
    r"\s*(?:(?:i'm|i am|we're)?(?: very| really| so)? ?sorry|i apologi[sz]e|unfortunately)?[\s,.:;!-]*(?:but )?"
    r"(?:as an ai\b|i(?: can't| cannot| can not|'m not able| am not able|'m unable| am unable| won't| will not)\b"
    r"|(?:es )?tut mir leid\b|leider kann ich\b|ich kann (?:ihnen |dir )?(?:dabei |das )?nicht\b)",
    re.IGNORECASE,
)


class ObservedAnswer(WireModel):
    """One model's answer to a job, as the facts that the guards compare."""

    failed: bool = False
    """True if the outcome is `failed` or `expired`, or if the candidate was away and the primary answered the job."""
    not_json: bool = False
    refused: bool = False
    """True if the answer begins as a refusal does, in English or German."""
    cut: bool = False
    """True if the answer ended at `max_tokens`."""
    unsupported: bool = False
    """True if a citation has no support, or if the answer failed for lack of support."""
    infer_ms: float = Field(default=0.0, ge=0)
    tokens: int = Field(default=0, ge=0, le=2**31 - 1)
    """Tokens of the answer."""


class Comparison(WireModel):
    """A record's value; the key is the rollout."""

    rollout: RolloutId
    step: Step
    """The rollout's step when the job was answered."""
    job_id: Identifier
    profile: Identifier = "none"
    """The profile of the job's sources; `none` for a job without sources."""
    primary: ObservedAnswer | None = None
    candidate: ObservedAnswer | None = None
    differs: float = Field(default=0.0, ge=0, le=1)
    """The difference of the candidate's answer from the primary's: 0 equal, 1 different."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """The difference of two answers of the primary."""
    primary_text: str | None = Field(default=None, max_length=MAX_TEXT_CHARS)
    candidate_text: str | None = Field(default=None, max_length=MAX_TEXT_CHARS)


class InvalidComparison(Exception):  # noqa: N818 - named after the record
    """A record that is no comparison."""


def write_comparison(said: Comparison) -> bytes:
    """Return the comparison as a record's value."""
    return said.model_dump_json(exclude_none=True, exclude_defaults=True).encode()


def read_comparison(key: bytes | None, value: bytes | None) -> Comparison:
    """Return the comparison in a record. Raises InvalidComparison, also if key and value name different rollouts."""
    try:
        said = Comparison.model_validate_json(value or b"")
    except ValidationError:
        raise InvalidComparison("the value is no comparison of a rollout") from None
    if key != said.rollout.encode():
        raise InvalidComparison("the key is not the rollout of the value")
    return said


def is_refusal(text: str) -> bool:
    """True if an answer begins as a refusal does."""
    return _REFUSAL.match(text[:300].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) is not None
