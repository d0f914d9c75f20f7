"""Records of `fleet_workers`: the models and adapters that each worker answers for, and how long an answer takes.

The topic is compacted: each record replaces the earlier ones of its worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, ValidationError

from schemas.bounded import WireModel
from schemas.job import Identifier

ANNOUNCE_SECONDS = 60.0
"""A worker announces itself this often."""
LIVE_SECONDS = 3 * ANNOUNCE_SECONDS
"""A worker that has not announced itself for this time is considered to have ended."""
MAX_MODELS = 256
LONGEST_ANSWER_SECONDS = 604_800.0
"""A week. No answer takes longer, because every job expires after at most six days."""
_NAME = re.compile(r"[\x21-\x7e]{1,256}")


class WorkerAnnouncement(WireModel):
    """A record's value; the key is the replica. A tombstone (no value) says that the worker has ended."""

    replica: str = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")
    lane: str | None = Field(default=None, max_length=64)
    """The engine whose lanes the worker reads; absent for the lanes of the whole fleet."""
    models: Annotated[tuple[Identifier, ...], Field(max_length=MAX_MODELS)]
    """Models that a job in these lanes may name in `model_id`: the worker answers for them, or forwards the job."""
    adapters: Annotated[tuple[Identifier, ...], Field(max_length=MAX_MODELS)] = ()
    """LoRA adapters that a job may name in `adapter`, if this worker answers it."""
    more: bool = False
    """True if the worker has more names than `models` or `adapters` may hold."""
    version: str | None = Field(default=None, max_length=64)
    """The worker's version of Postback."""
    answer_seconds: float | None = Field(default=None, ge=0, le=LONGEST_ANSWER_SECONDS)
    """The 99th percentile of the times of the worker's last answers, in seconds; absent before its first answer."""
    at: int = Field(ge=0, lt=10**15)
    """Time of the announcement by the worker's clock, Unix milliseconds."""


class InvalidAnnouncement(Exception):  # noqa: N818 - named after the record
    """A record of `fleet_workers` that cannot be read."""


def announcement(
    replica: str,
    lane: str | None,
    names: Iterable[str],
    at: int,
    version: str | None = None,
    adapters: Iterable[str] = (),
    answer_seconds: float | None = None,
) -> WorkerAnnouncement:
    """Return an announcement of at most `MAX_MODELS` models and as many adapters.

    Names that no job may give are left out.
    """
    models, more_models = _usable(names)
    tuned, more_adapters = _usable(adapters)
    return WorkerAnnouncement(
        replica=replica,
        lane=lane,
        models=models,
        adapters=tuned,
        more=more_models or more_adapters,
        version=version,
        answer_seconds=min(answer_seconds, LONGEST_ANSWER_SECONDS) if answer_seconds is not None else None,
        at=at,
    )


def _usable(names: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Return the first `MAX_MODELS` of the valid names, and True if there are more."""
    usable = tuple(name for name in dict.fromkeys(names) if _NAME.fullmatch(name))
    return usable[:MAX_MODELS], len(usable) > MAX_MODELS


def worker_key(replica: str) -> bytes:
    """Return the key of this replica's records."""
    return replica.encode()


def write_announcement(said: WorkerAnnouncement) -> bytes:
    """Return the announcement as a record's value."""
    return said.model_dump_json(exclude_none=True).encode()


def read_announcement(key: bytes | None, value: bytes) -> WorkerAnnouncement:
    """Return the announcement in a record.

    Raises InvalidAnnouncement, also if key and value name different replicas.
    """
    try:
        said = WorkerAnnouncement.model_validate_json(value)
    except ValidationError:
        raise InvalidAnnouncement("the value is no worker's announcement") from None
    if key != worker_key(said.replica):
        raise InvalidAnnouncement("the key is not the replica of the value")
    return said
