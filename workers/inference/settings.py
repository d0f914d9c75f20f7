"""Settings of a worker, read from `POSTBACK_WORKER__…`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.topics import is_engine_lane


def _lane(name: str) -> str:
    if not is_engine_lane(name):
        raise ValueError("1 to 64 letters, digits, `_` or `-`, and neither batch nor shadow, which name other topics")
    return name


EngineLane = Annotated[str, AfterValidator(_lane)]


class WorkerSettings(BaseSettings):
    """A worker's window, its pace, and the registry of models."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_WORKER__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    window_records: int = Field(default=1024, ge=1, le=8192)
    """Jobs in enrichment or generation at once; as many again of each lane are parked behind them."""
    window_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Bytes of those jobs; the parked jobs of each lane have half as many at most."""
    waiting_target: int = Field(default=256, ge=1, le=8192)
    """Jobs kept waiting inside the engine, so that it never runs dry; Kafka holds the rest.

    By default as many as vLLM generates at once: with fewer, a small batch follows one that ends all at once.
    """
    enrich_ahead: int = Field(default=512, ge=1, le=8192)
    """Jobs whose sources are read at once, ahead of the engine.

    Further jobs with sources wait; jobs without pass them, until `window_records` are in work. An engine that answers
    100 jobs/s needs 300 where the pages take 3 s; see POSTBACK_ENRICHMENT__CONNECTIONS.
    """
    bulk_share: float = Field(default=0.1, ge=0.01, le=0.9)
    """The bulk lane's least share of the places that become free while both lanes have jobs.

    While the default lane is empty, the bulk lane gets all places.
    """
    drain_seconds: float = Field(default=30.0, gt=0, le=600)
    """How long jobs in work may finish when the worker stops or loses a partition. Less than the grace period."""
    lane: EngineLane | None = None
    """The engine lane that this worker reads, where a fleet has several engines; absent, the shared lane.

    A worker reads one lane, not both: the worker that forwarded a job to the shared lane must not get it back.
    """
    models: dict[str, EngineLane | None] = Field(default_factory=dict)
    """The registry: each model's engine lane, null for the shared lane. As JSON."""
