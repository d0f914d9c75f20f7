"""The worker: loads an engine and answers jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial

from schemas.groups import INFERENCE_GROUP
from schemas.settings import FleetSettings, read_settings
from schemas.topics import Topics
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.peers import PeerWatch, http_answers
from workers.egress import EgressSettings, Guard
from workers.engines.base import Engine
from workers.engines.models.mistakes import listed
from workers.engines.models.registry_engine import RegistryEngine
from workers.enrichment.answering.grounding import fleet_secret
from workers.enrichment.answering.profile import Profiles
from workers.enrichment.enrich import Enricher
from workers.enrichment.search.providers import providers
from workers.enrichment.search.service import Web
from workers.enrichment.settings import CacheSettings, EnrichmentSettings, SearchSettings
from workers.inference.admission import signing_keys
from workers.inference.announcer import Announcer
from workers.inference.handler import InferenceHandler, Parts
from workers.inference.lifetime import KEPT_MS
from workers.inference.model_rules import ModelRules
from workers.inference.observed import AnswerTimes
from workers.inference.routing import Registry
from workers.inference.settings import WorkerSettings
from workers.kafka.topics import topic_ids
from workers.roles import last_resort
from workers.roles.delivery import delivery_stages
from workers.roles.input_filter import open_screen
from workers.roles.model_registry import RegistryWatch, engine_of, model_servers, read_file
from workers.roles.process import Listen, Process, run
from workers.roles.rollout import follow_rollouts, registry_of, shadow_stage, watch_lanes
from workers.stage.build import group_stage
from workers.stage.settings import StageSettings
from workers.stage.stage import Stage
from workers.stage.window import Limits
from workers.system.deltas import DeltaPublisher, DeltaSettings

log = get_logger()


async def run_worker(
    fleet: FleetSettings,
    engine_name: str | None,
    model: str | None,
    listen: Listen,
    announce: Callable[[int], None],
    *,
    with_delivery: bool = False,
    shadow: bool = False,
    stop: asyncio.Event | None = None,
) -> None:
    """Load the engine, join the group, and answer jobs until a stop signal, or until `stop` is set if it is given.

    With `shadow`, the worker answers only samples of other workers' jobs. Without an engine's name, the worker loads
    the engines in the model registry of POSTBACK_WORKER__REGISTRY. Loading may take minutes, so settings and topics are
    checked first. Raises ProcessError, SettingsRefused, RegistryRefused, the EngineError of an engine that does not
    start, and the error that ended a stage.
    """

    async def prepare(process: Process, stack: AsyncExitStack) -> list[Stage]:
        engine = engine_of(engine_name, model, process.clock, process.metrics)
        stack.push_async_callback(engine.close)
        stages = [await (shadow_stage if shadow else inference_stage)(process, engine, stack)]
        if with_delivery:
            enrichment = read_settings(EnrichmentSettings)
            readers = (enrichment.members + 1) * enrichment.member_bytes
            stages += await delivery_stages(process, stack, reserved_bytes=readers)
        await load(engine, process.clock)
        _watch_peers(process, engine, engine_name, stack)
        return stages

    await run(fleet, listen, announce, prepare, stop)


async def load(engine: Engine, clock: Clock) -> None:
    """Start the engine. Raises EngineError."""
    began, loaded = clock.monotonic(), listed(engine.models) if engine.models else "the engine"
    log.info(
        f"Loading {loaded} on engine {engine.name}; taking jobs once it is loaded.",
        action="engine-loading",
        engine=engine.name,
    )
    await engine.start()
    seconds = clock.monotonic() - began
    log.info(f"The engine is loaded after {seconds:.1f} s.", action="engine-loaded", seconds=round(seconds, 1))


def _watch_peers(process: Process, engine: Engine, engine_name: str | None, stack: AsyncExitStack) -> None:
    """Ask the model servers, and Redis for the cache and for deltas, every few seconds: alerts know their silence."""
    peers = PeerWatch(process.metrics, process.clock)
    stack.callback(peers.close)
    for url in model_servers(engine, engine_name):
        peers.watch("model_server", partial(http_answers, f"{url}/models"))
    peers.watch_redis(read_settings(CacheSettings).redis_url, read_settings(DeltaSettings).redis_url)


async def inference_stage(process: Process, engine: Engine, stack: AsyncExitStack) -> Stage:
    """Return the stage that answers jobs with this engine. `stack` closes the parts that the stage needs.

    Raises ProcessError, RulesRefused and SettingsRefused.
    """
    settings, kafka = read_settings(WorkerSettings), process.fleet.kafka
    egress, trust = read_settings(EgressSettings), signing_keys(settings, process.fleet.trust)
    screen = await open_screen(stack)
    enricher = await _enricher(process, egress, stack)  # before Kafka is asked, since settings are checked first
    read = lane, bulk_lane, spare_lane = kafka.topics.requests_of(settings.lane)
    # `topic_ids` checks the other lanes at the start, because one job for a missing topic would hold up all other jobs.
    lanes = engine.registry.lanes() if isinstance(engine, RegistryEngine) else settings.models
    others = lanes_of(lanes, settings.lane, kafka.topics)
    outputs = [bulk_lane, *others, kafka.topics.results, kafka.topics.dead_letters]
    outputs += [kafka.topics.shadow, kafka.topics.comparisons, *kafka.topics.later.values()]
    ids = await topic_ids(kafka, [lane, spare_lane, *outputs, kafka.topics.control])
    process.watch(ids)
    signing = process.fleet.trust.secrets
    secret = signing.secrets[0] if signing is not None else None
    enricher.mark_secret = fleet_secret(secret, ids[kafka.topics.results])
    registry, rules = registry_of(engine, settings), ModelRules()
    if isinstance(engine, RegistryEngine) and settings.registry is not None:
        rules = ModelRules(lambda: engine.registry, settings.lane)
        process.beside.append(
            RegistryWatch(settings.registry, partial(read_file, settings.registry), engine, registry, settings.lane)
        )
    process.duties.append(f"answers model {listed(registry.shown)} from topic {lane}")
    deltas, url = None, read_settings(DeltaSettings).redis_url
    if url is not None:
        deltas = DeltaPublisher(url.get_secret_value(), process.clock)
        process.beside.append(deltas)
    handler = InferenceHandler(
        Parts(
            engine=engine,
            enricher=enricher,
            registry=registry,
            callback_policy=egress.callback_policy(development=process.development),
            topics=kafka.topics,
            topic_ids=ids,
            settings=settings,
            clock=process.clock,
            metrics=process.metrics,
            trust=trust,
            screen=screen,
            rules=rules,
            deltas=deltas,
        )
    )
    process.beside.append(handler.engine_watch)
    await _announce(process, registry, engine, settings.lane, handler.answer_times, stack)
    # Read all cancellations before the first dispatch, so that no cancelled job begins.
    await process.follow(kafka.topics.control, handler.cancellations.apply, stack, KEPT_MS)
    await follow_rollouts(process, handler.rollouts, stack)
    if others:
        await watch_lanes(process, handler.rollouts, stack)
    stage = StageSettings(
        INFERENCE_GROUP, Limits(settings.window_records, settings.window_bytes), settings.drain_seconds
    )
    return group_stage(
        stage,
        kafka,
        read,
        process.replica,
        handler,
        process.clock,
        process.metrics,
        pace=handler.pace,
        sharing=handler.sharing,
        outputs=outputs,
        last_resort=last_resort.for_jobs(kafka.topics, ids, process.clock, process.metrics, trust),
        topic_ids=ids,
    )


async def _announce(
    process: Process,
    registry: Registry,
    engine: Engine,
    lane: str | None,
    times: AnswerTimes,
    stack: AsyncExitStack,
) -> None:
    """Make the process announce this worker's model names and answer times while it runs. Raises ProcessError."""
    kafka = process.fleet.kafka
    # The topic is checked now, but not watched later, because a worker answers jobs even if the topic is deleted.
    await topic_ids(kafka, [kafka.topics.workers])
    announcer = Announcer(
        kafka, process.replica, lane, lambda: registry.announced, lambda: engine.adapters, times.p99, process.clock
    )
    stack.push_async_callback(announcer.close)
    process.beside.append(announcer)


def lanes_of(models: Mapping[str, str | None], own: str | None, topics: Topics) -> list[str]:
    """Return the lanes to which this worker forwards jobs: the lanes of the models that other workers serve."""
    others = [lane for lane in dict.fromkeys(models.values()) if lane != own]
    return [topic for lane in others for topic in topics.requests_of(lane)]


async def _enricher(process: Process, egress: EgressSettings, stack: AsyncExitStack) -> Enricher:
    """Return a started enricher.

    Raises EmbeddingModelRefused, EntailmentModelRefused, ProfileRefused, SearchMisconfigured and TemplateRefused.
    """
    settings = read_settings(EnrichmentSettings)
    guard = Guard(egress.fetch_policy(development=process.development), proxy=egress.fetch_proxy())
    web = Web(settings.named, process.clock, settings.email, guard.proxy)
    found = providers(read_settings(SearchSettings), web)
    profiles = Profiles.load(settings.profiles_folder, found)
    enricher = Enricher(settings, guard, process.clock, process.metrics, found, profiles)
    await web.start()
    stack.push_async_callback(web.close)
    await enricher.start()
    stack.push_async_callback(enricher.close)
    return enricher
