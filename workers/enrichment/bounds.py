"""Limits of one job's sources: the job's own limits, cut to the operator's bounds.

The operator's defaults replace limits that the job does not set.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from schemas.job import Sources
from workers.enrichment.settings import EnrichmentSettings


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits that apply to one job, and notes on those values of the job that are outside the operator's bounds."""

    budget_seconds: float
    chars: int
    max_age_seconds: float
    """The greatest age of a cached page or search."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, sources: Sources, settings: EnrichmentSettings) -> Bounds:
        """Return the limits of a job whose field `sources` is this one."""
        most_seconds = max(settings.longest_budget_seconds, settings.budget_seconds)
        most_chars = max(settings.most_evidence_chars, settings.evidence_chars)
        seconds, chars, age = sources.budget_seconds, sources.max_chars, sources.freshness_seconds
        notes = []
        if seconds is not None and seconds > most_seconds:
            notes.append(f"budget_seconds is {most_seconds:g}, the operator's bound")
        if chars is not None and chars > most_chars:
            notes.append(f"max_chars is {most_chars}, the operator's bound")
        if age is not None and age < settings.least_freshness_seconds:
            notes.append(f"freshness_seconds is {settings.least_freshness_seconds:g}, the operator's bound")
        return cls(
            min(seconds, most_seconds) if seconds is not None else settings.budget_seconds,
            min(chars, most_chars) if chars is not None else settings.evidence_chars,
            max(age, settings.least_freshness_seconds) if age is not None else inf,
            tuple(notes),
        )
