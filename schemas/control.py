"""Records of `job_control`, by tenant and the id of a job or a batch.

The topic is compacted: each record replaces the earlier ones with its key.
"""

from __future__ import annotations

import re
from enum import StrEnum

from pydantic import TypeAdapter

from schemas.bounded import WireModel
from schemas.compacted import CompactedCodec
from schemas.job import Identifier, Tenant

JobKey = tuple[str, str]
"""Tenant and job id. A record's key is the pair as a JSON array."""

_KEY: TypeAdapter[tuple[Tenant, Identifier]] = TypeAdapter(tuple[Tenant, Identifier])


_LINE = re.compile(r"(batch_[0-9a-f]{32})\.[0-9]{1,6}")


def batch_of(job_id: str) -> str | None:
    """Return the id of the batch whose line the job is, `<batch id>.<line>`; None for another job."""
    found = _LINE.fullmatch(job_id) if job_id.startswith("batch_") else None
    return found[1] if found else None


class ControlState(StrEnum):
    """An order for a job, or for all jobs of a batch."""

    CANCELLED = "cancelled"
    """Cancel the job, or each job of the batch: the answer is no longer wanted."""


class JobControl(WireModel):
    """A record's value.

    A tombstone (no value) withdraws the order, so workers that have not read the job yet will run it.
    """

    tenant: Tenant
    job_id: Identifier
    """The id of a job, or of a batch: one record can cancel all 50,000 jobs of a batch."""
    state: ControlState
    at: int
    """Time of the order, Unix milliseconds."""

    @property
    def key(self) -> JobKey:
        """The tenant and id of the job."""
        return self.tenant, self.job_id


class InvalidControl(Exception):  # noqa: N818 - named after the record
    """A record of `job_control` that cannot be read."""


# `read_job_key` and `read_control` raise InvalidControl.
_CODEC = CompactedCodec(_KEY, JobControl, InvalidControl, key_is="[tenant, job id]", value_is="anything said of a job")
job_key_bytes, read_job_key = _CODEC.key_bytes, _CODEC.read_key
write_control, read_control = _CODEC.write, _CODEC.read
