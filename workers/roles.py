"""What a process can be: a worker, a delivery process, or both in one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import FleetSettings, read_settings
from schemas.topics import Topics
from telemetry.clock import Clock, SystemClock
from telemetry.health import HealthServer, Page, Readiness
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers import last_resort
from workers.announcer import Announcer
from workers.cancellations import KEPT_MS
from workers.compacted import Apply, CompactedTopic
from workers.delivery.deliver import COMPANY_SECONDS, DeliveryHandler
from workers.delivery.jwks import FLEET_JWKS_PATH, JWKS_FOLDER, fleet_jwks_page, tenant_jwks_page
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings, Guard
from workers.engines import EngineKind, EngineSettings, create
from workers.engines.base import Engine
from workers.enrichment import Enricher, EnrichmentSettings, Profiles
from workers.enrichment.search.providers import providers
from workers.enrichment.search.service import Web
from workers.enrichment.search.settings import SearchSettings
from workers.inference import InferenceHandler
from workers.memory_limit import window_bytes
from workers.process import (
    LoopBeat,
    ProcessError,
    SideTask,
    alive,
    allow_open_files,
    change_threads_often,
    readiness_of,
    replica_of,
    run_stages,
    stop_signal,
    topic_ids,
    topic_names,
    unless_stopped,
)
from workers.registry import Registry
from workers.settings import WorkerSettings
from workers.stage.build import group_stage
from workers.stage.stage import Stage, StageSettings
from workers.stage.window import Limits
from workers.topic_watch import TopicWatch

_REVOKE_DRAIN_SECONDS = 5.0
"""For delivery's attempts under way: longer than a record waits for its destination, and than most consumers take. An
attempt that hangs is repeated by the next owner; awaiting it would hold up all others of this process meanwhile."""

log = get_logger()


class KeyringNotSet(ProcessError):  # noqa: N818 - it names what is missing
    """Delivery has nothing to sign with: set POSTBACK_KEYRING to the file that `postback keys init` made."""


class CannotListen(ProcessError):  # noqa: N818 - it names what is wrong
    """Metrics and health cannot be served where they are to be."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the process serves its metrics. Port 0 is any free one."""

    host: str = "127.0.0.1"
    metrics_port: int = 0


class Process:
    """What both roles share while they run."""

    def __init__(self, fleet: FleetSettings) -> None:
        self.fleet = fleet
        self.development = fleet.env == "development"
        self.clock: Clock = SystemClock()
        self.metrics = Metrics()
        self.replica = replica_of(fleet)
        self.stages: list[Stage] = []
        self.beside: list[SideTask] = []
        self.pages: dict[str, Callable[[str], Page | None]] = {}
        self._starting = "the process is starting"

    def readiness(self) -> Readiness:
        """Not ready before its stages run."""
        return readiness_of(self.stages, self.beside) if self.started() else Readiness((self._starting,))

    def started(self) -> bool:
        """Whether everything is made and loaded that comes before its stages."""
        return bool(self.stages)

    def alive(self) -> bool:
        """Whether it comes round, once it has started."""
        return alive(self.stages, self.beside)

    async def follow(self, topic: str, apply: Apply, stack: AsyncExitStack, kept_ms: int | None = None) -> None:
        """Have `apply` told what a compacted topic says: all of it before this returns. Raises ProcessError.

        With `kept_ms` only what is no older.
        """
        followed = CompactedTopic(self.fleet.kafka, topic, apply, self.clock, kept_ms)
        stack.push_async_callback(followed.close)
        await followed.start()
        self.beside.append(followed)

    @asynccontextmanager
    async def observed(self, listen: Listen, announce: Callable[[int], None]) -> AsyncIterator[None]:
        """Serve health and metrics meanwhile; `announce` is told the port."""
        server = self._health_server(listen)
        server.start()
        announce(server.port)
        try:
            yield
        finally:
            server.stop()

    def _health_server(self, listen: Listen) -> HealthServer:
        """Raises CannotListen."""
        host, port = listen.host, listen.metrics_port
        try:
            return HealthServer(
                self.metrics,
                self.readiness,
                host,
                port,
                started=self.started,
                alive=self.alive,
                pages=self.pages,
            )
        except OSError as error:
            raise CannotListen(
                f"metrics and health cannot be served on port {port} of {host} ({error.strerror}); "
                "choose another --metrics-port, 0 being any free one, or another --host"
            ) from None


async def run_worker(
    fleet: FleetSettings,
    engine_kind: EngineKind,
    model: str | None,
    listen: Listen,
    announce: Callable[[int], None],
    *,
    with_delivery: bool = False,
) -> None:
    """Load the engine, join the group, answer jobs until SIGTERM.

    What the settings and the broker can be asked is asked before the engine loads, which may take minutes. Raises
    ProcessError, SettingsRefused, what the engine raises when it starts, and what ended a stage.
    """

    async def prepare(process: Process, stack: AsyncExitStack) -> list[Stage]:
        engine = create(engine_kind, read_settings(EngineSettings), process.metrics, process.clock, model=model)
        stack.push_async_callback(engine.close)
        stages = [await inference_stage(process, engine, engine_kind, stack)]
        if with_delivery:
            enrichment = read_settings(EnrichmentSettings)
            readers = (enrichment.members + 1) * enrichment.member_bytes
            stages.append(await _delivery_stage(process, stack, reserved_bytes=readers))
        await engine.start()
        return stages

    await _run(fleet, listen, announce, prepare)


async def run_delivery(fleet: FleetSettings, listen: Listen, announce: Callable[[int], None]) -> None:
    """Deliver callbacks until SIGTERM. Raises ProcessError, SettingsRefused and what ended the stage."""

    async def prepare(process: Process, stack: AsyncExitStack) -> list[Stage]:
        return [await _delivery_stage(process, stack)]

    await _run(fleet, listen, announce, prepare)


Prepare = Callable[[Process, AsyncExitStack], Coroutine[None, None, list[Stage]]]
"""Makes the stages of a process; what they need ends with the stack."""


async def _run(fleet: FleetSettings, listen: Listen, announce: Callable[[int], None], prepare: Prepare) -> None:
    """Prepare, serve, and end everything, in this order; a signal ends whichever it meets."""
    allow_open_files()
    process = Process(fleet)
    with stop_signal() as stop:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(process.observed(listen, announce))
            stages = await unless_stopped(prepare(process, stack), stop)
            if stages is not None:
                process.stages = stages
                process.beside.append(LoopBeat(process.clock))
                log.info("Serving.", action="serving", replica=process.replica, stages=len(stages))
                await run_stages(stages, stop, process.beside)
    log.info("Stopped.", action="stopped", replica=process.replica)


async def inference_stage(process: Process, engine: Engine, kind: EngineKind, stack: AsyncExitStack) -> Stage:
    """The stage that answers jobs with this engine. What it needs ends with `stack`.

    Raises ProcessError and SettingsRefused.
    """
    settings, kafka = read_settings(WorkerSettings), process.fleet.kafka
    egress = read_settings(EgressSettings)
    enricher = await _enricher(process, Guard(egress.fetch_policy(development=process.development)), stack)
    lane, bulk_lane = (kafka.topics.requests(settings.lane, bulk=bulk) for bulk in (False, True))
    others = lanes_of(settings, kafka.topics)  # a job forwarded to a topic that is missing would hold up all others
    outputs = [bulk_lane, *others, kafka.topics.results, kafka.topics.dead_letters]
    ids = await topic_ids(kafka, [lane, *outputs, kafka.topics.control])
    process.beside.append(TopicWatch(kafka, ids))
    registry = Registry((*engine.models, kind, "default"), settings.lane, settings.models)
    await _announce(process, registry, settings.lane, stack)
    handler = InferenceHandler(
        engine,
        enricher,
        registry,
        egress.callback_policy(development=process.development),
        kafka.topics,
        ids,
        settings,
        process.clock,
        process.metrics,
    )
    process.beside.append(handler.engine_watch)
    # Before the first dispatch, so that nothing is begun that was cancelled.
    await process.follow(kafka.topics.control, handler.cancellations.apply, stack, KEPT_MS)
    stage = StageSettings(
        INFERENCE_GROUP, Limits(settings.window_records, settings.window_bytes), settings.drain_seconds
    )
    read = [lane, bulk_lane]
    resort = last_resort.for_jobs(kafka.topics, ids, process.clock, process.metrics)
    made_of = process.replica, handler, process.clock, process.metrics, handler, handler, outputs, resort, ids
    return group_stage(stage, kafka, read, *made_of)


async def _announce(process: Process, registry: Registry, lane: str | None, stack: AsyncExitStack) -> None:
    """Have producers told which models this worker has while it serves. Raises ProcessError."""
    kafka = process.fleet.kafka
    # Not among the topics that are watched: jobs are answered without it.
    await topic_ids(kafka, [kafka.topics.workers])
    announcer = Announcer(kafka, process.replica, lane, registry.announced, process.clock)
    stack.push_async_callback(announcer.close)
    process.beside.append(announcer)


def lanes_of(settings: WorkerSettings, topics: Topics) -> list[str]:
    """The lanes of other engines, default and bulk, to which the registry sends jobs."""
    others = [lane for lane in dict.fromkeys(settings.models.values()) if lane != settings.lane]
    return [topics.requests(lane, bulk=bulk) for lane in others for bulk in (False, True)]


async def _enricher(process: Process, guard: Guard, stack: AsyncExitStack) -> Enricher:
    """Raises ProfileRefused, RerankerRefused, SearchMisconfigured and TemplateRefused."""
    settings = read_settings(EnrichmentSettings)
    web = Web(settings.named, process.clock, settings.email)
    found = providers(read_settings(SearchSettings), web)
    profiles = Profiles.load(settings.profiles_folder, found)
    enricher = Enricher(settings, guard, process.clock, process.metrics, found, profiles)
    await web.start()
    stack.push_async_callback(web.close)
    await enricher.start()
    stack.push_async_callback(enricher.close)
    return enricher


async def _delivery_stage(process: Process, stack: AsyncExitStack, *, reserved_bytes: int = 0) -> Stage:
    """`reserved_bytes` of the memory are for other processes in the same container."""
    settings, kafka = read_settings(DeliverySettings), process.fleet.kafka
    most_bytes = window_bytes(settings.window_bytes, reserved=reserved_bytes)
    settings = settings.model_copy(update={"window_bytes": most_bytes})
    log.info("Results are taken up to so many bytes.", action="delivery-window", bytes=most_bytes)
    policy = read_settings(EgressSettings).callback_policy(development=process.development)
    if process.fleet.keyring is None:
        raise KeyringNotSet(KeyringNotSet.__doc__)
    keyring = Keyring.load(process.fleet.keyring)
    process.pages[FLEET_JWKS_PATH] = partial(fleet_jwks_page, keyring, process.clock)
    process.pages[JWKS_FOLDER] = partial(tenant_jwks_page, keyring, process.clock)
    former_tiers = kafka.topics.former_tiers(await topic_names(kafka))
    read = [kafka.topics.results, *kafka.topics.tiers.values(), *former_tiers]
    others = [kafka.topics.attempts, kafka.topics.endpoints, kafka.topics.dead_letters]
    ids = await topic_ids(kafka, [*read, *others])
    process.beside.append(TopicWatch(kafka, ids))
    handler = DeliveryHandler(
        kafka.topics,
        keyring,
        Poster(settings, policy, process.clock),
        process.clock,
        process.metrics,
        settings,
        former_tiers=former_tiers,
    )
    stack.push_async_callback(handler.close)
    await process.follow(kafka.topics.endpoints, handler.states.apply, stack)
    change_threads_often()
    limits = Limits(settings.window_records, most_bytes)
    stage = StageSettings(
        DELIVERY_GROUP,
        limits,
        settings.drain_seconds,
        revoke_drain_seconds=_REVOKE_DRAIN_SECONDS,
        company_seconds=COMPANY_SECONDS,
    )
    outputs = [*kafka.topics.tiers.values(), *others]
    resort = last_resort.for_callbacks(kafka.topics, process.metrics)
    made_of = process.replica, handler, process.clock, process.metrics, handler, None, outputs, resort, ids
    return group_stage(stage, kafka, read, *made_of)
