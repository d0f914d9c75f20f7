"""Settings of files, from `POSTBACK_FILES__…` variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class FilesSettings(BaseSettings):
    """Files of tenants: inputs and outputs of batches."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_FILES__",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    place: str | None = Field(default=None, min_length=1)
    """The storage of contents: a folder, or `s3://BUCKET/PREFIX`. By default the folder `postback-files`, beside the
    file of an SQLite database, and otherwise in the working directory. All gateways of one store need the same
    storage."""
    s3_endpoint: str | None = None
    """The URL of S3-compatible storage; by default Amazon's. Credentials are `AWS_ACCESS_KEY_ID` and
    `AWS_SECRET_ACCESS_KEY`, or any other source that boto3 reads."""
    most_bytes: int = Field(default=200 * MIB, ge=1024, le=5 * 1024 * MIB)
    """The maximum number of bytes of one uploaded file."""
    tenant_bytes: int = Field(default=50 * 1024 * MIB, ge=1024)
    """The maximum number of bytes of all files of a tenant, its batches' outputs included.

    Uploads that would exceed this limit are refused.
    """
    upload_seconds: float = Field(default=3600, gt=0, le=24 * 3600)
    """The maximum number of seconds that one upload may take.

    The bytes of an upload that was cut off are removed after twice this time at most.
    """
    result_days: float = Field(default=30, gt=0)
    """Days after which the output files of a batch expire, unless the batch states `output_expires_after`."""
    cancel_seconds: float = Field(default=600, ge=0)
    """Seconds for which a cancelled batch waits for the results of its lines. Then the lines without a result are in
    the error file as `batch_cancelled`."""
