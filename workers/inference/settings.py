"""Settings of a worker, read from `POSTBACK_WORKER__…`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.topics import is_engine_lane


def _lane(name: str) -> str:
    if not is_engine_lane(name):
        raise ValueError("1 to 64 letters, digits, `_` or `-`, and neither batch nor shadow, which other topics are")
    return name


EngineLane = Annotated[str, AfterValidator(_lane)]


class WorkerSettings(BaseSettings):
    """How much a worker takes on at once, and which models are whose."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_WORKER__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    window_records: int = Field(default=1024, ge=1, le=8192)
    """Jobs that are enriched or generated at once; as many again of each lane are parked behind them."""
    window_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Bytes of those jobs; what is parked of each lane has half as many at most."""
    waiting_target: int = Field(default=256, ge=1, le=8192)
    """Jobs kept waiting inside the engine, so that it never runs dry; Kafka holds the rest.

    As many as vLLM generates at once by default: with fewer, a batch that ends all at once is followed by a small one.
    """
    enrich_ahead: int = Field(default=512, ge=1, le=8192)
    """Jobs whose sources are read at once, ahead of the engine.

    More of them wait for their turn, which holds nobody back who is ready, until `window_records` are under way. An
    engine that answers 100 jobs/s needs 300 where the pages take 3 s; see POSTBACK_ENRICHMENT__CONNECTIONS.
    """
    bulk_share: float = Field(default=0.1, ge=0.01, le=0.9)
    """Of the places that become free, the least part that the bulk lane gets while both lanes have jobs.

    It gets all of them while the default lane is empty.
    """
    drain_seconds: float = Field(default=30.0, gt=0, le=600)
    """How long what runs is awaited when the worker stops or a partition goes away. Less than the grace period."""
    lane: EngineLane | None = None
    """The engine lane that this worker reads, where a fleet has several engines; absent, the shared one.

    One of the two and not both: a job that was forwarded to the shared lane has to reach a worker of that lane, and
    would come back to whoever sent it there.
    """
    models: dict[str, EngineLane | None] = Field(default_factory=dict)
    """The registry: which engine lane serves a model; null is the shared lane. As JSON."""
