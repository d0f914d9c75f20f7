"""Settings of a worker, read from `POSTBACK_WORKER__…`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.job import Tenant
from schemas.settings import Constants, RoomSettings
from schemas.topics import is_engine_lane


def _lane(name: str) -> str:
    if not is_engine_lane(name):
        raise ValueError(
            "1 to 64 letters, digits, `_` or `-`, and none of batch, shadow, spare: these name other topics"
        )
    return name


EngineLane = Annotated[str, AfterValidator(_lane)]


Weight = Annotated[float, Field(ge=0.001, le=1000)]


class WorkerConstants(Constants):
    """Bounds on the jobs under way, and their shares."""

    waiting_target: int | None = None
    """A fixed number of jobs that wait inside the engine; the other jobs wait in Kafka.

    By default the number follows the engine: the jobs that the engine answers during one refill, and at most eight
    more.
    """
    bulk_share: float = 0.1
    """The bulk lane's least share of the freed places while both lanes have jobs: enough that no bulk job starves.

    While the default lane is empty, the bulk lane gets all places. Jobs of the default lane that would wait for long
    move to the bulk lane.
    """
    model_wait_seconds: float = 5.0
    """Seconds that a job for an unserved model waits before its rejection, counted from its record's timestamp.

    So a job may be sent this much earlier than its worker starts or the registry changes. At most 64 jobs wait; further
    jobs are rejected at once.
    """
    enrich_ahead: int = 512
    """Maximum number of jobs whose sources are read at once, ahead of the engine.

    One tenant has at most three quarters of these places.

    Further jobs with sources wait. Jobs without sources overtake the waiting jobs until `window_records` jobs are under
    way. An engine that answers 100 jobs/s needs 300 if pages take 3 s.
    """


class WorkerSettings(WorkerConstants, RoomSettings, env_prefix="POSTBACK_WORKER__"):
    """A worker's window, its pace, and the registry of models."""

    window_records: int = Field(default=2048, ge=1, le=8192)
    """Maximum number of jobs in enrichment or generation at once. Each lane may park the same number of further jobs.

    One tenant's jobs with something to fetch take at most three quarters of this number, so that a hanging server stops
    no other tenant.

    The default has room for the 1,024 jobs that vLLM generates at once on a large GPU, and for jobs in vLLM's queue and
    in enrichment.
    """
    window_bytes: int = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Maximum bytes of the jobs in enrichment or generation.

    The parked jobs of one lane together have at most a third of these bytes.
    """
    tenant_weights: dict[Tenant, Weight] = Field(default_factory=dict)
    """Weights of tenants, as JSON: a tenant of weight 3 gets three times the tokens of a tenant of weight 1.

    Other tenants have weight 1.
    """
    drain_seconds: float = Field(default=30.0, gt=0, le=600)
    """Seconds in which running jobs may finish when the worker stops or loses a partition.

    Keep this below the grace period of the worker's pod.
    """
    trust: Literal["any", "signed"] = "any"
    """`any`: the worker takes jobs of any writer of the topics.

    `signed`: the worker takes only jobs whose tenant is signed. The gateway and `postback submit` sign with a secret of
    POSTBACK_TRUST__SECRET_FILE. Other jobs are rejected, and their callbacks are not called. The signature does not
    prevent replay: a copy of a signed record is answered again, for the same tenant.
    """
    lane: EngineLane | None = None
    """The engine lane that this worker reads in a fleet with several engines; if absent, the shared lane.

    A worker reads one lane only, so that a job it forwards to the shared lane cannot come back to it.
    """
    models: dict[str, EngineLane | None] = Field(default_factory=dict)
    """The registry of models, as JSON: each model's engine lane, or null for the shared lane."""
    registry: Path | None = None
    """The file of the model registry (TOML), which replaces `--engine` and `models`.

    `postback models check` names the file's mistakes. A worker reads a changed file again within seconds: aliases,
    defaults, prices, limits and escalations change without a restart.
    """

    shadow_embedding_model: str | None = Field(default=None, min_length=1, max_length=1000)
    """The name or folder of a sentence-transformers model: with it, a shadow worker compares answers by meaning.

    The model needs the extra `rerank`. If absent, answers are compared by words alone.
    """

    @model_validator(mode="after")
    def _one_registry(self) -> Self:
        if self.registry is not None and self.models:
            raise ValueError("`registry` and `models` are both set; move the models into the registry's file")
        return self
