"""Jobs as they are submitted. This library does not check jobs; the gateway and the workers do."""

from __future__ import annotations

import dataclasses
import json
import secrets
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from postback_client.clock import ClientClock
from postback_client.errors import UnusableJob
from postback_client.wire import Job

Lane = Literal["default", "bulk", "spare"]
"""Jobs of `bulk` may wait behind those of `default`. Jobs of `spare` run only while no other job waits."""


@dataclasses.dataclass(frozen=True, slots=True)
class JobState:
    """A job's state, as the gateway knows it."""

    status: str
    """`queued`, `cancelling`, or the job's outcome."""
    not_before: int | None = None
    """The time before which the job does not start, in Unix seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class NamedJob:
    """A job that has an id, as JSON."""

    job_id: str
    body: bytes


def named_jobs(
    jobs: Iterable[Job | Mapping[str, Any]], clock: ClientClock, key: str | None = None
) -> Iterator[NamedJob]:
    """Yield the jobs as JSON, with ids. With a key, a repeated call yields the same ids.

    Raises UnusableJob.
    """
    for index, job in enumerate(jobs):
        members = dict(job) if isinstance(job, Mapping) else _members(job)
        if members.get("job_id") is None:
            members["job_id"] = _new_id(clock) if key is None else f"job_{uuid.uuid5(_NAMES, f'{key}:{index}').hex}"
        try:
            body = json.dumps(members, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:  # an unpaired surrogate is a ValueError too
            raise UnusableJob(index, type(error).__name__) from None
        yield NamedJob(str(members["job_id"]), body)


_NAMES = uuid.UUID("c5f3a2b0-8d2e-4f0b-9d57-6a0a4c1f2e11")


def _members(job: Job) -> dict[str, Any]:
    """Return the members that have a value."""
    fields = ((each.name, getattr(job, each.name)) for each in dataclasses.fields(job))
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields if value is not None}


def _new_id(clock: ClientClock) -> str:
    """Return `job_` and a UUID version 7 in hexadecimal (RFC 9562, section 5.7): ids sort by their time."""
    milliseconds = int(clock.time() * 1000) & (1 << 48) - 1
    number = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"job_{number:032x}"
