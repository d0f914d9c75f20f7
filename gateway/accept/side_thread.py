"""A `SideTask` with a thread of its own, for blocking work on Kafka and the store, and the pauses after failures."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod

from confluent_kafka import KafkaException

from gateway.errors import StoreAway
from telemetry.clock import Clock
from telemetry.health import Heartbeat

STUCK_SECONDS = 180.0
"""A thread without a round for this time counts as stuck: even a write waits at most a minute for the database."""


class SideThread(ABC):
    """Runs `_run` on a thread while `ended` is awaited. An error of `_run` ends the process."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._heartbeat = Heartbeat(clock, STUCK_SECONDS)
        self._stopping = threading.Event()

    @property
    def alive(self) -> bool:
        """True if the thread made a round within three minutes."""
        return self._heartbeat()

    @abstractmethod
    def reasons(self) -> list[str]:
        """Return the reasons why the thread does not do its work now."""

    async def ended(self) -> None:
        """Run until cancelled, then wait until the thread has ended. Raises the thread's error."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        self._heartbeat.beat()
        thread = threading.Thread(target=self._guarded, args=(loop, ended), name=self._name, daemon=True)
        thread.start()
        try:
            await asyncio.shield(ended)
        finally:
            self._stopping.set()
            self._wake()
            await asyncio.to_thread(thread.join)

    @abstractmethod
    def _run(self) -> None:
        """Work until `_goes_on` returns False."""

    def _goes_on(self) -> bool:
        """Note that the thread is alive; return whether it may go on."""
        self._heartbeat.beat()
        return not self._stopping.is_set()

    def _wake(self) -> None:  # noqa: B027 - most threads wait in `_rest` only
        """Wake the thread if it waits."""

    def _rest(self, seconds: float) -> None:
        """Wait for `seconds`, or until the thread is stopped."""
        self._stopping.wait(seconds)

    def _guarded(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        error: BaseException | None = None
        try:
            self._run()
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(_end, ended, error)


def _end(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
        ended.exception()  # marks the error as read; otherwise asyncio logs the error if nothing awaits `ended`


LONGEST_REST_SECONDS = 5.0
_FIRST_REST_SECONDS = 0.1
_MOST_FAILURES = 10


class Trouble:
    """Counts failures in a row. A single thread reports to a Trouble; any thread may ask for `lasting`."""

    def __init__(self, clock: Clock, silent_seconds: float) -> None:
        """`silent_seconds` is the time without success after which the trouble is lasting."""
        self._clock = clock
        self._silent_seconds = silent_seconds
        self._failures = 0
        self._since: float | None = None
        self.problem = ""
        """The last failure, as a phrase or Kafka's name for it."""

    @property
    def lasting(self) -> str | None:
        """The last failure, if there was no success for `silent_seconds`; else None."""
        since = self._since
        if since is None or self._clock.monotonic() - since < self._silent_seconds:
            return None
        return self.problem

    def failed(self, error: KafkaException | StoreAway) -> float:
        """Note a failure; return the seconds to rest before the next try."""
        self.problem = error.args[0].name() if isinstance(error, KafkaException) else str(error)
        self._since = self._since or self._clock.monotonic()
        self._failures = min(self._failures + 1, _MOST_FAILURES)
        return min(LONGEST_REST_SECONDS, _FIRST_REST_SECONDS * float(2 ** (self._failures - 1)))

    def succeeded(self) -> bool:
        """Note a success; return True if it ends a series of failures."""
        ended = self._since is not None
        self._failures, self._since = 0, None
        return ended
