"""Handlers of inference over real parts, with the values that most tests share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from schemas.topics import Topics
from schemas.trust import TrustSecrets
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy
from workers.engines.base import Engine
from workers.enrichment.enrich import Enricher
from workers.inference.handler import InferenceHandler, Parts
from workers.inference.routing import Registry
from workers.inference.settings import WorkerSettings

if TYPE_CHECKING:
    from workers.screening.screen import Screen  # this import needs the extra `screening`

CLOCK = SystemClock()
TOPICS = Topics("fleet.")


def inference_handler(
    engine: Engine,
    enricher: Enricher,
    metrics: Metrics,
    *,
    settings: WorkerSettings | None = None,
    lanes: Mapping[str, str | None] | None = None,
    registry: Registry | None = None,
    callbacks: EgressPolicy | None = None,
    topic_id: str | None = None,
    trust: TrustSecrets | None = None,
    screen: Screen | None = None,
) -> InferenceHandler:
    """A handler of the default lane whose engine serves the models `echo`, `vllm` and `default`.

    `lanes` maps further models to their lanes, `registry` replaces all of them, and `topic_id` is the UUID of the
    default lane.
    """
    return InferenceHandler(
        Parts(
            engine=engine,
            enricher=enricher,
            registry=registry or Registry({"echo", "vllm", "default"}, None, dict(lanes or {})),
            callback_policy=callbacks or EgressPolicy(),
            topics=TOPICS,
            topic_ids={} if topic_id is None else {TOPICS.requests(): topic_id},
            settings=settings or WorkerSettings(),
            clock=CLOCK,
            metrics=metrics,
            trust=trust,
            screen=screen,
        )
    )
