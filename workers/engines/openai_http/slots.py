"""The slots of one server: a request waits for a slot in the worker, and keeps the slot until its answer.

The server's counts limit the slots, or else its refusals.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from workers.engines.openai_http.limits import FIRST, AnswerLimit, CountLimit, ServerLoad
from workers.engines.places import least_waiting


class Slots:
    """Gives slots in the order of the calls. The event loop calls the methods; any thread may read the numbers."""

    def __init__(self, most: int, show: Callable[[float], None]) -> None:
        """`most` bounds the slots.

        `show` is called with each change of the number of slots, for example with +1 for a new slot.
        """
        self._most = most
        self._counts: CountLimit | None = None
        """None for a server that reports no counts."""
        self.refusals = AnswerLimit(FIRST, most)
        self._show = show
        self._shown = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.taken = 0
        """The number of requests that have a slot.

        After the limit has fallen, this number exceeds the limit for a while.
        """
        self.busy = asyncio.Event()
        """Set while a request has a slot."""

    @property
    def places(self) -> int:
        """The number of requests for which the server generates answers at once."""
        counts = self._counts
        return min(counts.places, self.refusals.number) if counts is not None else self.refusals.number

    @property
    def number(self) -> int:
        """The number of requests that the server may have at once: its places, plus the few that wait there."""
        counts = self._counts
        if counts is None:
            return self.refusals.number
        places = counts.places
        return min(places + least_waiting(places), self.refusals.number)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold the slot during the block."""
        await self._take()
        try:
            yield
        finally:
            self._leave()

    def begin(self) -> int:
        """Count a request that is sent now, and return its number."""
        return self.refusals.begin()

    def answered(self) -> None:
        """Note an answer to a request that still has its slot."""
        self.refusals.answered(self.taken)
        self._changed()

    def refused(self, number: int) -> None:
        """Note that the server refused request `number` because it has too many requests."""
        self.refusals.refused(number, self.taken)
        self._changed()

    def restore(self) -> None:
        """Note that the server refused requests because it was away."""
        self.refusals.restore()
        self._changed()

    def timed_out(self, number: int) -> None:
        """Note a timeout of request `number`."""
        self.refusals.timed_out(number, self.taken)
        self._changed()

    def told(self, load: ServerLoad) -> None:
        """Note the server's own counts. Until the server refuses a request, these counts alone set the limit."""
        if self._counts is None:
            self._counts = CountLimit(self._most)
            self.refusals.unless_refused(self._most)
        self._counts.told(load, self.taken)
        self._changed()

    def untold(self) -> None:
        """Forget the counts, which the server no longer reports. From now on, refusals change the present limit."""
        if self._counts is not None:
            self.refusals.unless_refused(self.number)
            self._counts = None
        self._changed()

    def open(self) -> None:
        """Show the present number of slots. Each later change is shown too."""
        self._changed()

    def close(self) -> None:
        """Show 0 slots."""
        self._show(-self._shown)
        self._shown = 0

    async def _take(self) -> None:
        if self.taken < self.number and not self._waiting:
            self._count(1)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # give back the slot that came just before the cancellation
                self._leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _leave(self) -> None:
        self._count(-1)
        self._give()

    def _count(self, difference: int) -> None:
        self.taken += difference
        if self.taken:
            self.busy.set()
        else:
            self.busy.clear()

    def _changed(self) -> None:
        number = self.number
        self._show(number - self._shown)
        self._shown = number
        self._give()

    def _give(self) -> None:
        """Give the free slots to the requests that wait."""
        while self._waiting and self.taken < self.number:
            turn = self._waiting.popleft()
            if not turn.done():
                self._count(1)
                turn.set_result(None)


# -- Reads a server's own counts of its requests, as long as the server reports them --
LOOK_SECONDS = 1.0
"""Pause between two looks at the counts of a server that has requests of this worker."""
LONGEST_PAUSE_SECONDS = 60.0
"""The longest pause at a server that reports no counts; each pause is twice the one before."""
FAILED_LOOKS = 3
"""After this many failed looks in a row, the last counts are stale.

One failed look is too few, because a busy server may answer one look too late.
"""


async def follow(look: Callable[[], Awaitable[ServerLoad | None]], slots: Slots) -> None:
    """Pass the server's counts to the slots until the task is cancelled.

    While no request holds a slot, the server is not asked.
    """
    failed, pause = 0, LOOK_SECONDS
    while True:
        load = await look()
        if load is not None:
            failed, pause = 0, LOOK_SECONDS
            slots.told(load)
        else:
            failed, pause = failed + 1, min(2 * pause, LONGEST_PAUSE_SECONDS)
            if failed >= FAILED_LOOKS:
                slots.untold()
        await asyncio.sleep(pause)
        await slots.busy.wait()
