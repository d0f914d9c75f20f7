"""Settings of the store, from `POSTBACK_STORE__…` variables."""

from __future__ import annotations

from pydantic import Field

from schemas.settings import Constants, RoomSettings


class StoreConstants(Constants):
    """Bounds on the records that wait for Kafka."""

    outbox_rows: int = 500_000
    """The maximum number of accepted records that may wait for Kafka.

    If more wait, the gateway answers 503 to requests that submit work.
    """
    outbox_bytes: int = 2 * 1024**3
    """The maximum number of bytes of the accepted records that may wait for Kafka."""


class StoreSettings(StoreConstants, RoomSettings, env_prefix="POSTBACK_STORE__", env_nested_delimiter="__"):
    """The gateway's database."""

    url: str = Field(default="sqlite:///postback.db")
    """SQLAlchemy's URL of the database: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`."""
    kept_days: int = Field(default=30, ge=2)
    """Days for which the gateway keeps finished jobs with their results, callback attempts and events."""
