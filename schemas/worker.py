"""Records of `fleet_workers`: the models that each worker answers for.

The topic is compacted: the last record of each worker counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, ValidationError

from schemas.bounded import WireModel
from schemas.job import Identifier

MAX_MODELS = 256
_NAME = re.compile(r"[\x21-\x7e]{1,256}")


class WorkerAnnouncement(WireModel):
    """A record's value; the key is the replica. A tombstone (no value) says that the worker has ended."""

    replica: str = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")
    lane: str | None = Field(default=None, max_length=64)
    """The engine whose lanes the worker reads; absent for the lanes of the whole fleet."""
    models: Annotated[tuple[Identifier, ...], Field(max_length=MAX_MODELS)]
    """Models that a job in these lanes may name in `model_id`: the worker answers for them, or forwards the job."""
    more: bool = False
    """True if the worker has more names than `models` may hold."""
    version: str | None = Field(default=None, max_length=64)
    """The worker's version of Postback; absent in announcements of versions that did not state it."""
    at: int = Field(ge=0, lt=10**15)
    """Time of the announcement by the worker's clock, Unix milliseconds."""


class InvalidAnnouncement(Exception):  # noqa: N818 - named after the record
    """A record of `fleet_workers` that cannot be read."""


def announcement(
    replica: str, lane: str | None, names: Iterable[str], at: int, version: str | None = None
) -> WorkerAnnouncement:
    """Announce the first `MAX_MODELS` of these names, without names that are not valid in `model_id`."""
    usable = [name for name in dict.fromkeys(names) if _NAME.fullmatch(name)]
    more = len(usable) > MAX_MODELS
    return WorkerAnnouncement(
        replica=replica, lane=lane, models=tuple(usable[:MAX_MODELS]), more=more, version=version, at=at
    )


def worker_key(replica: str) -> bytes:
    """Return the key of this replica's records."""
    return replica.encode()


def write_announcement(said: WorkerAnnouncement) -> bytes:
    """Write a record's value."""
    return said.model_dump_json(exclude_none=True).encode()


def read_announcement(key: bytes | None, value: bytes) -> WorkerAnnouncement:
    """Read an announcement. Raises InvalidAnnouncement, also if key and value name different replicas."""
    try:
        said = WorkerAnnouncement.model_validate_json(value)
    except ValidationError:
        raise InvalidAnnouncement("the value is no worker's announcement") from None
    if key != worker_key(said.replica):
        raise InvalidAnnouncement("the key is not the replica of the value")
    return said
