"""The fleet as the door sees it: its models, and frames of `postback top` for people with the scope `admin`.

Models are those that workers announce now, and those that workers announced within a day. A job for a model that
nothing announced within a day is refused at once. The store keeps the names, because Kafka forgets the announcement of
a worker that has ended. So a fleet without workers still knows its models.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection

from gateway.access.recent import Recent
from gateway.dependency import Dependency
from gateway.errors import unavailable
from gateway.store.meta import set_value, value_of
from gateway.store.store import Store, StoreAway
from producers.errors import ProducerError
from schemas.settings import KafkaSettings, read_settings
from schemas.worker import LIVE_SECONDS
from telemetry.clock import Clock
from workers.stage.progress import done_offsets

if TYPE_CHECKING:  # kafka-python is imported by the first reading, since it takes as long as the whole door
    from cli.operations.top import FleetWatch, Frame

FRESH_SECONDS = 10.0
SOON_SECONDS = 2.0
"""Kafka is asked again after this time at the earliest. The worker of an unknown model may have just started."""
KNOWN_SECONDS = 24 * 3600.0
_WRITE_SECONDS = 3600.0
_KEPT = "models"


@dataclass(frozen=True, slots=True)
class Announcements:
    """The announcements of a day."""

    live: tuple[str, ...] = ()
    """The models of the workers that live now, in the order of their announcement."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """The Unix time of each model's last announcement, and of aliases of rollouts the present time."""
    more: bool = False
    """True if a worker has more models than it announces."""


class FleetModels:
    """Asks Kafka in a thread; requests that come meanwhile share the answer.

    While Kafka is away, the last answer is used for a while.
    """

    def __init__(self, ask: Callable[[], Announcements], store: Store, clock: Clock) -> None:
        self._ask = ask
        self._store = store
        self._clock = clock
        self._thread = Dependency("announcements of workers", 1, 0)
        self._refreshed = Recent(self._refresh, SOON_SECONDS, clock)
        self._asked_at = -math.inf
        self._announced = Announcements()
        self._kept: dict[str, list[float]] | None = None
        """For each model the Unix times of its first and its last announcement, as the store has them."""

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    async def names(self) -> tuple[str, ...]:
        """Return the names of the models that live workers have. Raises ApiError (503)."""
        if self._age() > FRESH_SECONDS:
            await self._refreshed.get(None)
        if self._age() > LIVE_SECONDS:
            message = "The workers' models are unknown, since Kafka does not answer; repeat the request."
            raise unavailable("models_unknown", message)
        return self._announced.live

    async def unknown(self, names: set[str]) -> set[str]:
        """Return the names that no worker announced within a day; empty if the workers' models cannot be known.

        A name with a slash may be a path in a worker, which workers serve and do not announce.
        """
        asked = {name for name in names if "/" not in name}
        unknown = self._without_known(asked)
        if unknown:
            await self._refreshed.get(None)
            unknown = self._without_known(asked)
        is_certain = bool(self._kept) and not self._announced.more and self._age() < math.inf
        return unknown if is_certain else set()

    def created(self, name: str) -> int:
        """Return the Unix time of the model's first announcement, as far as the store knows."""
        return int((self._kept or {}).get(name, [self._clock.time()])[0])

    def _without_known(self, names: set[str]) -> set[str]:
        since, kept = self._clock.time() - KNOWN_SECONDS, self._kept or {}
        return {name for name in names if name not in kept or kept[name][1] < since}

    def _age(self) -> float:
        return self._clock.monotonic() - self._asked_at

    async def _refresh(self, _: None) -> bool:
        """Ask Kafka. Returns True if it answered."""
        try:
            if self._kept is None:
                self._kept = await self._store.read(_read_kept)
            self._announced = await self._thread.run_anyway(self._ask)
        except (ProducerError, StoreAway):
            return False
        self._asked_at = self._clock.monotonic()
        if self._merge():
            content = json.dumps(self._kept)
            with suppress(StoreAway):
                await self._store.write(lambda connection: set_value(connection, _KEPT, content))
        return True

    def _merge(self) -> bool:
        """Note the announced models, and forget old ones. Returns True if the store should be written."""
        kept, since = self._kept or {}, self._clock.time() - KNOWN_SECONDS
        changed = False
        for name, at in self._announced.seen.items():
            first, last = kept.get(name, [at, -math.inf])
            changed = changed or at - last > _WRITE_SECONDS
            kept[name] = [first, max(last, at)]
        young = {name: times for name, times in kept.items() if times[1] >= since}
        self._kept = young
        return changed or len(young) < len(kept)


def _read_kept(connection: Connection) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(value_of(connection, _KEPT) or "{}")
    return found


def read_announcements(kafka: KafkaSettings, clock: Clock) -> Announcements:
    """Read the announcements of a day, and the aliases of rollouts. Blocks. Raises ProducerError."""
    from producers.scan import Scanner  # kafka-python is imported by the first question
    from schemas.rollout.facts import InvalidRollout, RolloutTable
    from schemas.worker import InvalidAnnouncement, read_announcement

    now = clock.time()
    live: dict[Any, tuple[str, ...]] = {}
    seen: dict[str, float] = {}
    more, rollouts = False, RolloutTable()
    with Scanner(kafka, clock) as scanner:
        for record in scanner.read(scanner.ranges(kafka.topics.workers, int((now - KNOWN_SECONDS) * 1000))):
            live.pop(record.key, None)
            try:
                said = read_announcement(record.key, record.value or b"")
            except InvalidAnnouncement:
                continue
            if said.lane is not None:
                continue
            seen |= dict.fromkeys(said.models, record.at_ms / 1000)
            more = more or said.more
            if record.at_ms / 1000 >= now - LIVE_SECONDS:
                live[record.key] = said.models
        for record in scanner.read(scanner.ranges(kafka.topics.rollouts)):
            try:
                rollouts.apply(record.key, record.value)
            except InvalidRollout:
                continue
    models = dict.fromkeys(name for each in live.values() for name in each)
    return Announcements(tuple(models), seen | dict.fromkeys(rollouts.by_alias, now), more)


# -- the state of the fleet --------------------------------------------------------------------------------------------


IDLE_SECONDS: Final = 120.0
_READERS: Final = 8
"""The maximum number of readings that wait for the thread. Pages share readings, so that one is usual."""


class FleetFrames:
    """Reads frames of `postback top` in one thread. Each process has one such object, and uses it on its event loop.

    A reading keeps its connections to Kafka and the positions that it has reached. Without a reader for IDLE_SECONDS,
    the connections are closed.
    """

    def __init__(self, kafka: KafkaSettings, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._threads = Dependency("Kafka", 1, _READERS)
        self._open = ExitStack()
        self._watch: FleetWatch | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def read(self) -> Frame:
        """Return the state of the fleet now. Raises ProducerError, SettingsRefused and DependencyBusy."""
        if self._idle is not None:
            self._idle.cancel()
        try:
            return await self._threads.run(self._frame)
        finally:
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._threads.submit, self._end)

    def close(self) -> None:
        """Close the connections, after the present reading, and end the thread."""
        if self._idle is not None:
            self._idle.cancel()
        self._threads.submit(self._end)
        self._threads.close(drop=False)

    def _frame(self) -> Frame:
        from cli.operations.exporter.replicas import ExporterSettings
        from cli.operations.top import watching

        try:
            if self._watch is None:
                opening = watching(self._kafka, read_settings(ExporterSettings), done_offsets, self._clock)
                self._watch = self._open.enter_context(opening)
            return self._watch.frame()
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        """Close the connections. The next reading opens new ones."""
        self._watch = None
        self._open.close()
