"""Settings of files, from `POSTBACK_FILES__…` variables."""

from __future__ import annotations

from pydantic import Field

from schemas.settings import Constants, RoomSettings

MIB = 1024 * 1024


class FilesConstants(Constants):
    """Bounds and lifetimes of files, as OpenAI's."""

    s3_endpoint: str | None = None
    """The URL of S3-compatible storage, before `AWS_ENDPOINT_URL_S3`, which operators set."""
    most_bytes: int = 200 * MIB
    """The maximum number of bytes of one uploaded file."""
    upload_seconds: float = 3600
    """The maximum number of seconds that one upload may take.

    The bytes of an upload that was cut off are removed after twice this time at most.
    """
    result_days: float = 30
    """Days after which the output files of a batch expire, unless the batch states `output_expires_after`."""
    cancel_seconds: float = 600
    """Seconds for which a cancelled batch waits for the results of its lines. Then the lines without a result are in
    the error file as `batch_cancelled`."""


class FilesSettings(FilesConstants, RoomSettings, env_prefix="POSTBACK_FILES__", env_nested_delimiter="__"):
    """Files of tenants: inputs and outputs of batches."""

    place: str | None = Field(default=None, min_length=1)
    """The storage of contents: a folder, or `s3://BUCKET/PREFIX`. By default the folder `postback-files`, beside the
    file of an SQLite database, and otherwise in the working directory. All gateways of one store need the same
    storage. For a bucket, credentials and the URL of a storage that is not Amazon's are `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY` and `AWS_ENDPOINT_URL_S3`, or any other source that boto3 reads."""
    tenant_bytes: int = Field(default=50 * 1024 * MIB, ge=1024)
    """The maximum number of bytes of all files of a tenant, its batches' outputs included.

    Uploads that would exceed this limit are refused.
    """
