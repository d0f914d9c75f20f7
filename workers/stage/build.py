"""A stage over a consumer group of the fleet's Kafka: the one place that joins the parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from confluent_kafka import KafkaError

from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.kafka import client_config
from workers.stage.foresight import Foresight, Scout
from workers.stage.intake import BESIDE_PACED, GroupIntake, Prefetch
from workers.stage.record import Handler
from workers.stage.settle import Settler
from workers.stage.sharing import Sharing
from workers.stage.stage import Pace, Stage, StageSettings


def group_stage(
    settings: StageSettings,
    kafka: KafkaSettings,
    topics: Sequence[str],
    replica: str,
    handler: Handler,
    clock: Clock,
    metrics: Metrics,
    pace: Pace | None = None,
    sharing: Sharing | None = None,
    outputs: Iterable[str] = (),
) -> Stage:
    """A stage that reads `topics` as a member of the group `<prefix><name>`, and may write to `outputs`.

    Its transactional.id is `<prefix><name>.<replica>`: the same over restarts of a replica, so that a new process ends
    at once what a killed one left open.
    """
    errors: list[Stage] = []

    def on_error(error: KafkaError) -> None:
        for stage in errors:
            stage.watch.broker_error(error)

    group = f"{kafka.topic_prefix}{settings.name}"
    prefetch = Prefetch(records=2 * settings.limits.records)
    if pace is not None and any(map(pace.paces, topics)):
        prefetch = BESIDE_PACED
    intake = GroupIntake(client_config(kafka), group, topics, on_error=on_error, prefetch=prefetch)
    settler = Settler(client_config(kafka), f"{group}.{replica}", intake.group_metadata, clock, metrics, outputs)
    foresight = None if sharing is None else Foresight(Scout(client_config(kafka), group, sharing), clock)
    stage = Stage(settings, handler, intake, settler, clock, metrics, pace, sharing, foresight)
    errors.append(stage)
    return stage
