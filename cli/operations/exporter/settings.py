"""Settings of the exporter, read from `POSTBACK_EXPORTER__…`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from schemas.settings import RoomSettings


class ExporterSettings(RoomSettings, env_prefix="POSTBACK_EXPORTER__"):
    """How the exporter reads Kafka, and the bounds of the wanted number of workers."""

    interval_seconds: float = Field(default=5.0, ge=0.1, le=300)
    """Seconds between two readings of Kafka."""
    min_replicas: int = Field(default=0, ge=0, le=10_000)
    """The least number of wanted workers of a lane, even if no jobs wait."""
    max_replicas: int = Field(default=100, ge=1, le=10_000)
    """The largest number of wanted workers of a lane. The number of the lane's partitions is a limit too."""
    jobs_per_second: float = Field(default=1.0, gt=0, le=100_000)
    """Jobs that one worker answers in a second, until a measurement of busy workers replaces this assumption."""
    start_seconds: float = Field(default=120.0, ge=0, le=7200)
    """Seconds from asking for a worker to its first job: for a machine, the image, and loading the model."""
    margin_seconds: float = Field(default=60.0, ge=0, le=7200)
    """Each job should be answered this many seconds before its deadline. If the 99th percentile of the answers'
    measured times is longer, that time is the margin, but at most half of the time left after a worker's start.
    """
    time_share: float = Field(default=0.25, gt=0, le=1)
    """The share of the time to a job's deadline in which the job should be answered. The rest of the time is left for
    jobs that arrive meanwhile. With the value 1, workers would start so late that a sudden rush of jobs would meet a
    full backlog."""
    down_seconds: float = Field(default=300.0, ge=0, le=3600)
    """The wanted number of workers falls only if fewer workers have sufficed for this many seconds."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("MIN_REPLICAS is above MAX_REPLICAS; lower it")
        return self
