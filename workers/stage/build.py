"""Construction of a stage that reads as a member of a consumer group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from confluent_kafka import KafkaError

from schemas.settings import KafkaSettings
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.kafka.clients import asking_config, client_config
from workers.kafka.topics import TopicQuestion
from workers.stage.defects import LastResort
from workers.stage.record import Handler
from workers.stage.settings import StageSettings
from workers.stage.settler import Settler
from workers.stage.sharing import Backpressure, Sharing
from workers.stage.source import GroupSource
from workers.stage.stage import Stage
from workers.stage.topic_ids import Identities

AHEAD_OF_PACED = 1000
"""The number of records to prefetch if the stage's records are paced: small, because the stage gives back records that
are not due and fetches them again."""


def group_stage(
    settings: StageSettings,
    kafka: KafkaSettings,
    topics: Sequence[str],
    replica: str,
    handler: Handler,
    clock: Clock,
    metrics: Metrics,
    pace: Backpressure | None = None,
    sharing: Sharing | None = None,
    outputs: Iterable[str] = (),
    last_resort: LastResort | None = None,
    topic_ids: Mapping[str, str] | None = None,
) -> Stage:
    """Return a stage that reads `topics` as a member of the group `<prefix><name>`, and may write to `outputs`.

    `last_resort` writes the dead letter of a record whose `give_up` raised; without a last resort the record is settled
    with no output. `topic_ids` are the UUIDs by which the handler knows its topics: the stage ends with TopicMadeAnew
    if a topic has another UUID now. For topics not in `topic_ids`, the stage remembers the first UUID that Kafka
    returns.

    The transactional.id is `<prefix><name>.<replica><suffix>`, and a replica's restart does not change the id. So the
    new process at once ends a transaction that its killed predecessor left open.
    """
    errors: list[Stage] = []

    def on_error(error: KafkaError) -> None:
        for stage in errors:
            stage.watch.broker_error(error)

    group = f"{kafka.topic_prefix}{settings.name}"
    prefetch = AHEAD_OF_PACED if pace is not None and pace.paced else 2 * settings.limits.records
    source = GroupSource(client_config(kafka), group, topics, on_error=on_error, prefetch_records=prefetch)
    identity = f"{group}.{replica}{settings.suffix}"
    settler = Settler(client_config(kafka), identity, source.group_metadata, clock, metrics, outputs)
    identities = Identities(partial(TopicQuestion, asking_config(kafka)), topic_ids or {})
    stage = Stage(settings, handler, source, settler, clock, metrics, pace, sharing, last_resort, identities)
    errors.append(stage)
    return stage
