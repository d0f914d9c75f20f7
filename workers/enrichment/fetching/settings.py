"""Settings of payloads, read from `POSTBACK_PAYLOADS__…`."""

from __future__ import annotations

import re
from typing import Annotated, Final, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from schemas.settings import Constants, RoomSettings

_TENANT: Final = "{tenant}"
_FOLDER: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/((?:[^\x00-\x1f\x7f]*/)?)")


class ObjectFolder(NamedTuple):
    """A folder of objects in S3 that jobs may name."""

    bucket: str
    prefix: str
    """The beginning of the objects' keys: empty, or with a slash at the end. `{tenant}` stands for the job's tenant."""

    def holds(self, bucket: str, key: str, tenant: str) -> bool:
        """True if a job of this tenant may name this object."""
        return bucket == self.bucket and key.startswith(self.prefix.replace(_TENANT, tenant))


def _folders(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(_folder(item.strip()) for item in value.split(",") if item.strip())


def _folder(item: str) -> ObjectFolder:
    found = _FOLDER.fullmatch(item)
    if found is None:
        raise ValueError("not s3://BUCKET/ or s3://BUCKET/PREFIX/ with a slash at the end")
    return ObjectFolder(found[1], found[2])


class PayloadConstants(Constants):
    """Bounds on fetching payloads."""

    seconds: float = 30.0
    """Time for fetching a payload, including further tries if the server fails."""
    jobs: int = 32
    """Maximum number of jobs that have payloads in memory at once. Further jobs with a `payload_url` wait.

    In memory, the text of a payload takes one to four times the payload's bytes (PEP 393). The engine's request may
    contain a copy.
    """


class PayloadSettings(PayloadConstants, RoomSettings, env_prefix="POSTBACK_PAYLOADS__"):
    """Limits on the documents at the `payload_url` of jobs, and the buckets that jobs may name."""

    most_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=100_000_000)
    """Maximum size of a payload after decompression."""
    s3: Annotated[tuple[ObjectFolder, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders `s3://BUCKET/PREFIX/`, separated by commas, whose objects jobs may name; none by default.

    `{tenant}` in a prefix stands for the job's tenant. Without `{tenant}`, each tenant may read all objects of the
    prefix. Credentials and region come from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_DEFAULT_REGION`, or
    any other source that boto3 reads. Needs the extra `s3`.
    """
    s3_endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+/?$")
    """The URL of S3-compatible storage; by default Amazon's. The egress lists do not apply to this URL."""
