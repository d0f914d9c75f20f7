"""A process of a fleet: its identity, its health pages, and the parts that run beside its stages."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from schemas.settings import FleetSettings
from telemetry.clock import Clock, SystemClock
from telemetry.health import HealthPage, HealthServer, Readiness
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.kafka.compacted import Apply, CompactedTopic
from workers.roles.supervision import LoopBeat, SideTask, alive, readiness_of, run_stages, stop_signal, unless_stopped
from workers.stage.stage import Stage
from workers.system.errors import ProcessError
from workers.system.tuning import allow_open_files

log = get_logger()


class CannotListen(ProcessError):  # noqa: N818 - it names what is wrong
    """Metrics and health cannot be served where they are to be."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the process serves its metrics. Port 0 is any free one."""

    host: str = "127.0.0.1"
    metrics_port: int = 0


def replica_of(settings: FleetSettings) -> str:
    """The process's identity: stable where POSTBACK_REPLICA says so, else random."""
    return settings.replica or f"r{secrets.token_hex(4)}"


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
        self.pages: dict[str, Callable[[str], HealthPage | None]] = {}
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


Prepare = Callable[[Process, AsyncExitStack], Coroutine[None, None, list[Stage]]]
"""Makes the stages of a process; what they need ends with the stack."""


async def run(fleet: FleetSettings, listen: Listen, announce: Callable[[int], None], prepare: Prepare) -> None:
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
