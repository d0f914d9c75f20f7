"""The parts of a gray release in a process: every worker follows rollouts, and a shadow worker tries candidates."""

from __future__ import annotations

from contextlib import AsyncExitStack

from schemas.groups import SHADOW_GROUP
from schemas.settings import read_settings
from workers.engines.base import Engine
from workers.engines.models.mistakes import listed
from workers.engines.models.registry_engine import RegistryEngine
from workers.enrichment.answering.profile import Profiles
from workers.enrichment.choosing.embedder import Embedder
from workers.enrichment.search.providers import providers
from workers.enrichment.search.service import Web
from workers.enrichment.settings import EnrichmentSettings, SearchSettings
from workers.inference.rollout.difference import Meaning
from workers.inference.rollout.rollouts import LaneWatch, Rollouts
from workers.inference.rollout.shadow import ShadowHandler
from workers.inference.rollout.steering import Steering, StepWriter
from workers.inference.routing import Registry
from workers.inference.settings import WorkerSettings
from workers.kafka.topics import topic_ids
from workers.roles.process import Process
from workers.stage.build import group_stage
from workers.stage.settings import StageSettings
from workers.stage.stage import Stage
from workers.stage.window import Limits


async def follow_rollouts(process: Process, rollouts: Rollouts, stack: AsyncExitStack) -> None:
    """Follow rollouts and their comparisons, and write the next steps of rollouts. Raises ProcessError."""
    kafka = process.fleet.kafka
    writer = StepWriter(kafka)
    stack.push_async_callback(writer.close)
    steering = Steering(rollouts, process.replica, process.clock, process.metrics, writer.write)
    process.beside += [writer, steering]
    # The orders are read to their end first, because a comparison needs the order of its rollout.
    await process.follow(kafka.topics.rollouts, rollouts.apply, stack)
    await process.follow(kafka.topics.comparisons, steering.apply, stack)


async def watch_lanes(process: Process, rollouts: Rollouts, stack: AsyncExitStack) -> None:
    """Let the primary answer for a candidate while no worker reads the candidate's lane."""
    lanes = LaneWatch(process.fleet.kafka, process.clock)
    stack.push_async_callback(lanes.close)
    await lanes.start()
    process.beside.append(lanes)
    rollouts.is_read = lanes.is_read


async def shadow_stage(process: Process, engine: Engine, stack: AsyncExitStack) -> Stage:
    """Return the stage in which this engine answers samples of other workers' jobs.

    Raises ProcessError, ProfileRefused, SettingsRefused, and EmbeddingModelRefused for a model that cannot be loaded.
    """
    settings, kafka = read_settings(WorkerSettings), process.fleet.kafka
    ids = await topic_ids(kafka, [kafka.topics.shadow, kafka.topics.comparisons, kafka.topics.rollouts])
    process.watch(ids)
    registry = registry_of(engine, settings)
    rollouts = Rollouts(registry)
    meaning = await _meaning(settings, process, stack)
    handler = ShadowHandler(
        engine, _profiles(process), rollouts, registry.serves, kafka.topics, process.clock, process.metrics, meaning
    )
    process.beside.append(handler.engine_watch)
    process.duties.append(f"tries candidates {listed(registry.shown)} with samples from topic {kafka.topics.shadow}")
    await follow_rollouts(process, rollouts, stack)
    stage = StageSettings(SHADOW_GROUP, Limits(settings.window_records, settings.window_bytes), settings.drain_seconds)
    read, outputs = [kafka.topics.shadow], [kafka.topics.comparisons]
    return group_stage(
        stage,
        kafka,
        read,
        process.replica,
        handler,
        process.clock,
        process.metrics,
        pace=handler.pace,
        outputs=outputs,
        topic_ids=ids,
    )


async def _meaning(settings: WorkerSettings, process: Process, stack: AsyncExitStack) -> Meaning | None:
    """Load the embedding model, if the settings name one. Raises EmbeddingModelRefused."""
    if settings.shadow_embedding_model is None:
        return None
    setting = "POSTBACK_WORKER__SHADOW_EMBEDDING_MODEL"
    embedder = Embedder(settings.shadow_embedding_model, setting=setting)
    stack.push_async_callback(embedder.close)
    await embedder.start()
    return Meaning(embedder, process.clock)


def registry_of(engine: Engine, settings: WorkerSettings) -> Registry:
    """Return the model names of a worker's engine, and the lane of each model name that the settings list."""
    if isinstance(engine, RegistryEngine):
        return Registry(engine.models, settings.lane, engine.registry.lanes())
    return Registry((*engine.models, engine.name, "default"), settings.lane, settings.models)


def _profiles(process: Process) -> Profiles:
    """Return the profiles of this environment, for the check of citations. Raises ProfileRefused."""
    settings = read_settings(EnrichmentSettings)
    found = providers(read_settings(SearchSettings), Web(settings.named, process.clock, settings.email))
    return Profiles.load(settings.profiles_folder, found)
