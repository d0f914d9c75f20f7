"""Records of `job_control`, by tenant and job id. The topic is compacted: the last record of each counts."""

from __future__ import annotations

from enum import StrEnum

from pydantic import TypeAdapter

from schemas.compacted import CompactedCodec
from schemas.job import Identifier, Tenant, WireModel

JobKey = tuple[str, str]
"""Tenant and job id. A record's key is the pair as a JSON array."""

_KEY: TypeAdapter[tuple[Tenant, Identifier]] = TypeAdapter(tuple[Tenant, Identifier])


class ControlState(StrEnum):
    """An operator's order for a job."""

    CANCELLED = "cancelled"
    """Cancel the job: its answer is no longer wanted."""


class JobControl(WireModel):
    """A record's value. A tombstone (no value) takes the order back, for workers that have not read the job yet."""

    tenant: Tenant
    job_id: Identifier
    state: ControlState
    at: int
    """Time of the order, Unix milliseconds."""

    @property
    def key(self) -> JobKey:
        """The tenant and id of the job."""
        return self.tenant, self.job_id


class InvalidControl(Exception):  # noqa: N818 - named after the record
    """A record of `job_control` that cannot be read."""


# Reading raises InvalidControl.
_CODEC = CompactedCodec(_KEY, JobControl, InvalidControl, key_is="[tenant, job id]", value_is="anything said of a job")
job_key_bytes, read_job_key = _CODEC.key_bytes, _CODEC.read_key
write_control, read_control = _CODEC.write, _CODEC.read
