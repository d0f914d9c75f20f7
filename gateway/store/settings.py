"""Settings of the store, from `POSTBACK_STORE__…` variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StoreSettings(BaseSettings):
    """The gateway's database."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_STORE__",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    url: str = Field(default="sqlite:///postback.db")
    """SQLAlchemy's URL of the database: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`."""
    kept_days: int = Field(default=30, ge=2)
    """Days for which the gateway keeps finished jobs with their results, callback attempts and events."""
    outbox_rows: int = Field(default=500_000, ge=1)
    """The maximum number of accepted records that may wait for Kafka.

    If more wait, the gateway answers 503 to requests that submit work.
    """
    outbox_bytes: int = Field(default=2 * 1024**3, ge=1)
    """The maximum number of bytes of the accepted records that may wait for Kafka."""
