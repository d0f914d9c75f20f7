"""What `job_control` says of a job: (tenant, job id). Compacted, so the last record of each counts."""

from __future__ import annotations

from enum import StrEnum

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from schemas.job import Identifier, Tenant, WireModel

JobKey = tuple[str, str]
"""Tenant and job id. The record's key is this as a JSON array."""

_KEY: TypeAdapter[tuple[Tenant, Identifier]] = TypeAdapter(tuple[Tenant, Identifier])


class ControlState(StrEnum):
    """What is wanted of a job."""

    CANCELLED = "cancelled"
    """Nobody wants its answer any more."""


class JobControl(WireModel):
    """The value of a record. A tombstone (no value) takes it back, for workers that have not met the job yet."""

    tenant: Tenant
    job_id: Identifier
    state: ControlState
    at: int
    """Since when, Unix milliseconds."""

    @property
    def key(self) -> JobKey:
        """Which job this is about."""
        return self.tenant, self.job_id


class InvalidControl(Exception):  # noqa: N818 - it names what the record is
    """A record of `job_control` that cannot be read."""


def job_key_bytes(key: JobKey) -> bytes:
    """The key of a job's records."""
    return to_json(list(key))


def read_job_key(key: bytes | None) -> JobKey:
    """The other way round. Raises InvalidControl."""
    try:
        return _KEY.validate_json(key or b"")
    except ValidationError:
        raise InvalidControl("the key is not [tenant, job id]") from None


def read_control(value: bytes) -> JobControl:
    """A record's value. Raises InvalidControl."""
    try:
        return JobControl.model_validate_json(value)
    except ValidationError:
        raise InvalidControl("the value says nothing of a job that is known here") from None


def write_control(control: JobControl) -> bytes:
    """A record's value."""
    return control.model_dump_json().encode()
