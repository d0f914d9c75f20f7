"""The outcomes of a job, in a module of its own: the command's help names them without loading pydantic."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The end of a job. Every job has exactly one outcome."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
