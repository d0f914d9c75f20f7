"""A process of a fleet: its identity, its health pages, and the parts that run beside its stages."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass

from confluent_kafka.admin import AdminClient

from schemas.settings import FleetSettings, KafkaSettings
from telemetry.clock import Clock, SystemClock
from telemetry.health import HealthPage, HealthServer, Readiness
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.kafka.clients import asking_config
from workers.kafka.compacted import Apply, Follower
from workers.kafka.topics import AccessDenied, BrokerAway, known_ids
from workers.roles.supervision import LoopBeat, alive, readiness_of, run_stages, stop_signal, unless_stopped
from workers.stage.stage import Stage
from workers.stage.topic_ids import TopicMadeAnew, require_same
from workers.system.errors import ProcessError
from workers.system.side_task import SideTask
from workers.system.tuning import allow_open_files, share_arenas

LOOK_SECONDS = 0.1
TOPICS_LOOK_SECONDS = 15.0

log = get_logger()


class WhenReady(SideTask):
    """Calls `act` once, as soon as `/readyz` would answer 200 for the first time."""

    def __init__(self, readiness: Callable[[], Readiness], act: Callable[[], Coroutine[None, None, None]]) -> None:
        self._readiness = readiness
        self._act = act

    async def ended(self) -> None:
        """Wait until the process is ready, call `act`, and then wait until this task is cancelled."""
        while True:
            if self._readiness().ready:
                break
            await asyncio.sleep(LOOK_SECONDS)
        await self._act()
        await asyncio.Event().wait()


class ReadyLine(WhenReady):
    """Logs one line when the process is ready.

    `duties` are phrases such as `answers model "big" from topic model_requests`.
    """

    def __init__(self, readiness: Callable[[], Readiness], duties: Sequence[str], replica: str, metrics_url: str):
        super().__init__(readiness, self._log)
        self._duties = duties
        self._replica = replica
        self._metrics_url = metrics_url

    async def _log(self) -> None:
        log.info(
            f"Ready: {' and '.join(self._duties)}, as replica {self._replica}; metrics on {self._metrics_url}.",
            action="serving",
            replica=self._replica,
            metrics_url=self._metrics_url,
        )


class TopicWatch(SideTask):
    """Ends the process when one of its topics was deleted and created again under the same name.

    A stage checks only the topics that it reads, before the first record of each assignment. A TopicWatch also checks
    topics that the process only writes to. It checks compacted topics too, because facts read from a deleted topic are
    stale.
    """

    def __init__(self, kafka: KafkaSettings, look_seconds: float = TOPICS_LOOK_SECONDS) -> None:
        self._kafka = kafka
        self._look_seconds = look_seconds
        self.ids: dict[str, str] = {}
        """The UUIDs by which the process knows its topics."""
        self._missing: list[str] = []

    def reasons(self) -> list[str]:
        """Return one reason for each topic that is gone."""
        return [
            f"the topic {name} does not exist any more; `postback topics create` makes it" for name in self._missing
        ]

    async def ended(self) -> None:
        """Check the topics every `look_seconds` until cancelled. Raises TopicMadeAnew."""
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                # A client between two looks may not stay, see `TopicQuestion`.
                found = await known_ids(AdminClient(asking_config(self._kafka)), self._kafka, list(self.ids))
            except (BrokerAway, AccessDenied):
                continue  # the stages report that Kafka is away
            self._missing = [name for name in self.ids if name not in found]
            try:
                require_same(self.ids, found)
            except TopicMadeAnew as anew:
                log.error(
                    f"Topic {anew.topic} was deleted and created again; draining and ending.",
                    action="topic-replaced",
                    topic=anew.topic,
                )
                raise


class CannotListen(ProcessError):  # noqa: N818 - it names what is wrong
    """The process cannot listen on the address for metrics and health."""


@dataclass(frozen=True, slots=True)
class Listen:
    """The address of the process's metrics and health pages. Port 0 means any free port."""

    host: str = "127.0.0.1"
    metrics_port: int = 0


def replica_of(settings: FleetSettings) -> str:
    """Return the process's identity: POSTBACK_REPLICA, or a random name."""
    return settings.replica or f"r{secrets.token_hex(4)}"


class Process:
    """The parts that a running process has in every role."""

    def __init__(self, fleet: FleetSettings) -> None:
        self.fleet = fleet
        self.development = fleet.env == "development"
        self.clock: Clock = SystemClock()
        self.metrics = Metrics()
        self.replica = replica_of(fleet)
        self.stages: list[Stage] = []
        self.beside: list[SideTask] = []
        self.fronts: list[SideTask] = []
        """Side tasks that take work from outside, such as an HTTP server.

        These tasks end before the tasks in `beside`.
        """
        self.ready_by: list[SideTask] | None = None
        """The parts that decide if the process is ready; None stands for all stages and side tasks."""
        self.pages: dict[str, Callable[[str], HealthPage | None]] = {}
        self.duties: list[str] = []
        """Phrases for the log's ready line, such as `delivers results from topic model_results`."""
        self.metrics_url = ""
        """The URL of the metrics page, set inside the `observed` block."""
        self._follower: Follower | None = None
        self._topic_watch: TopicWatch | None = None
        self.prepared = False
        """True if all parts that the stages and side tasks need are loaded."""

    def readiness(self) -> Readiness:
        """Return the reasons why the process is not ready.

        Before the stages run, the reason is that the process is starting.
        """
        if not self.prepared:
            return Readiness(("the process is starting",))
        if self.ready_by is not None:
            return readiness_of([], self.ready_by)
        return readiness_of(self.stages, [*self.beside, *self.fronts])

    def started(self) -> bool:
        """Return whether all parts that the stages and side tasks need are loaded."""
        return self.prepared

    def alive(self) -> bool:
        """Return whether the Kafka threads, the event loop and the side tasks still run their loops."""
        return alive(self.stages, [*self.beside, *self.fronts])

    def watch(self, ids: Mapping[str, str]) -> None:
        """End the process if one of these topics, given with their UUIDs, is deleted and created again."""
        if self._topic_watch is None:
            self._topic_watch = TopicWatch(self.fleet.kafka)
            self.beside.append(self._topic_watch)
        self._topic_watch.ids.update(ids)

    async def follow(self, topic: str, apply: Apply, stack: AsyncExitStack, kept_ms: int | None = None) -> None:
        """Follow a compacted topic as `Follower.follow` does, with the process's one follower. Raises ProcessError.

        The follower is closed with the `stack` of the first topic.
        """
        if self._follower is None:
            self._follower = Follower(self.fleet.kafka, self.clock)
            stack.push_async_callback(self._follower.close)
        await self._follower.follow(topic, apply, kept_ms)
        if self._follower not in self.beside:
            self.beside.append(self._follower)

    @asynccontextmanager
    async def observed(self, listen: Listen, announce: Callable[[int], None]) -> AsyncIterator[None]:
        """Serve health and metrics during the `with` block. Calls `announce` with the port. Raises CannotListen."""
        server = self._health_server(listen)
        server.start()
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        self.metrics_url = f"http://{host}:{server.port}/metrics"
        announce(server.port)
        try:
            yield
        finally:
            server.stop()

    def _health_server(self, listen: Listen) -> HealthServer:
        """Return the server of the process's pages. Raises CannotListen."""
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
                "choose another --metrics-port (0 takes any free port) or --host"
            ) from None


Prepare = Callable[[Process, AsyncExitStack], Coroutine[None, None, list[Stage]]]
"""Returns the stages of a process. The callbacks on the stack close all parts that the stages need."""


async def run(
    fleet: FleetSettings,
    listen: Listen,
    announce: Callable[[int], None],
    prepare: Prepare,
    stop: asyncio.Event | None = None,
) -> None:
    """Run a process: prepare the stages, run the stages, then close all parts.

    A stop signal may arrive at any step; every part that was opened is still closed. A caller that runs several roles
    in one process gives `stop` and sets it itself, because signals reach only the main thread; signals then stay as
    they are.
    """
    allow_open_files()
    share_arenas()
    process = Process(fleet)
    with stop_signal() if stop is None else nullcontext(stop) as stopping:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(process.observed(listen, announce))
            stages = await unless_stopped(prepare(process, stack), stopping)
            if stages is not None:
                process.stages, process.prepared = stages, True
                process.beside.append(LoopBeat(process.clock))
                process.beside.append(
                    ReadyLine(process.readiness, process.duties, process.replica, process.metrics_url)
                )
                await run_stages(stages, stopping, process.beside, process.fronts)
    log.info("Stopped.", action="stopped", replica=process.replica)
