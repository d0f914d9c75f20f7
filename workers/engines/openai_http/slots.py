"""The slots of one server: a request waits for a slot in the worker, and keeps the slot until its answer.

The server's own counts limit the slots, or else its refusals.

A vLLM server counts its running and its waiting requests. The limit is the number of the worker's requests that the
server runs, plus the few that wait at the server for a place (`places.least_waiting`). Other workers' requests are in
the counts too, so a worker uses only its share of the running requests. A share that the server cannot run shrinks in
proportion, and a share that the server can run grows by a constant, so that the shares become equal (Chiu and Jain,
1989).

Any other server limits the number by its refusals, as a network limits a TCP connection (RFC 5681). A refusal halves
the number. Up to half of its value at the last refusal, the number grows by one for each answer; beyond that, it grows
by one for each round of answers.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from workers.engines.places import Rank, least_waiting

FIRST: Final = 16
"""The limit of a server that has neither reported its counts nor answered yet."""
QUEUE_LOOKS: Final = 3
"""The number of looks in a row that must find waiting requests before the limit may fall.

After a burst, the first steps leave requests waiting even if the server has a place for each request. If the limit
followed one look at such a step, a fast server would be idle for half a minute. The limit follows the look that found
the largest number of running requests, because vLLM's counts lack the requests that the last step ended.
"""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """A server's own counts of its requests, including those of other clients."""

    running: int
    waiting: int


class Slots:
    """Gives slots in the order of the calls. The event loop calls the methods; any thread may read the numbers."""

    def __init__(self, most: int, show: Callable[[float], None]) -> None:
        """`most` bounds the slots.

        `show` is called with each change of the number of slots, for example with +1 for a new slot.
        """
        self._most = most
        self._show = show
        self._shown = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.taken = 0
        """The number of requests that have a slot.

        After the limit has fallen, this number exceeds the limit for a while.
        """
        self.busy = asyncio.Event()
        """Set while a request has a slot."""
        self._limit = float(min(FIRST, most))
        """The limit by answers and refusals, at least 1."""
        self._goal = math.inf
        """The limit up to which each answer raises the limit by one: half of the limit at the last refusal."""
        self._begun = self._halved_at = 0
        self._has_answered = False
        """True if the server has answered since its last refusal."""
        self._before = self._limit
        """The limit before the refusals since the last answer."""
        self._rank: Rank | None = None
        """The places by the server's counts; None for a server that reports no counts."""
        self._full: deque[int] = deque(maxlen=QUEUE_LOOKS)
        """The number of running requests at each of the last looks in a row that found requests waiting."""

    @property
    def places(self) -> int:
        """The number of requests for which the server generates answers at once."""
        rank, limit = self._rank, int(self._limit)
        return min(rank.places, limit) if rank is not None else limit

    @property
    def number(self) -> int:
        """The number of requests that the server may have at once: its places, plus the few that wait there."""
        rank, limit = self._rank, int(self._limit)
        return min(rank.places + least_waiting(rank.places), limit) if rank is not None else limit

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold the slot during the block."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._give()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():  # also for a slot that came just before a cancellation
                self._count(-1)
                self._give()
            elif turn in self._waiting:
                self._waiting.remove(turn)

    def open(self) -> None:
        """Show the present number of slots. Each later change is shown too."""
        self._changed()

    def close(self) -> None:
        """Show 0 slots."""
        self._show(-self._shown)
        self._shown = 0

    # -- the limit by answers and refusals -----------------------------------------------------------------------

    def begin(self) -> int:
        """Count a request that is sent now, and return its number."""
        self._begun += 1
        return self._begun

    def answered(self) -> None:
        """Note an answer to a request that still has its slot. The limit rises only if all slots are taken."""
        self._has_answered = True
        if self.taken >= int(self._limit):
            step = 1.0 if self._limit < self._goal else 1 / self._limit
            self._limit = min(float(self._most), self._limit + step)
        self._changed()

    def refused(self, number: int) -> None:
        """Note that the server refused request `number` because it has too many requests.

        A refusal halves the limit, except if it concerns the former limit: if the request was sent before the last
        halving, or if more requests than the limit are still in flight. A server that was away refuses all requests.
        Then `_goal` stays the same, so that the limit soon rises to its former value.
        """
        if number > self._halved_at and self.taken <= int(self._limit):
            if self._has_answered:
                self._before, self._goal = self._limit, self._limit / 2
            self._limit = max(1.0, self._limit / 2)
            self._halved_at = self._begun
            self._has_answered = False
        self._changed()

    def timed_out(self, number: int) -> None:
        """Note a timeout of request `number`, as a refusal if no slot is free.

        While slots are free, do nothing, because the request itself is the likelier cause.
        """
        if self.taken >= int(self._limit):
            self.refused(number)

    def restore(self) -> None:
        """Return to the limit before the last refusals, which came from a server that was away and not busy."""
        self._limit = max(self._limit, self._before)
        self._changed()

    # -- the limit by the server's counts ------------------------------------------------------------------------

    def told(self, load: ServerLoad) -> None:
        """Note the server's own counts. Until the server refuses a request, these counts alone set the limit.

        Only the fraction of running requests in the counts matters, since the server counts a request for several
        answers several times.
        """
        if self._rank is None:
            self._rank = Rank(self._most)
            self._use_unless_refused(self._most)
        if load.running and self.taken:
            both = load.running + load.waiting
            ran = math.ceil(min(self.taken, both) * load.running / both)
            if not load.waiting:
                self._full.clear()
                self._rank.step(ran, is_full=False)
            else:
                self._full.append(ran)
                if len(self._full) == QUEUE_LOOKS:
                    self._rank.step(max(self._full), is_full=True)
        self._changed()

    def untold(self) -> None:
        """Forget the counts, which the server no longer reports. From now on, refusals change the present limit."""
        if self._rank is not None:
            self._use_unless_refused(self.number)
            self._rank = None
            self._full.clear()
        self._changed()

    def _use_unless_refused(self, number: int) -> None:
        """Use this limit, unless the server has refused a request after an answer."""
        if self._goal == math.inf:
            self._limit = float(number)

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


# -- The counts of a vLLM server, on its page `/metrics` in Prometheus' text format --
MOST_BYTES: Final = 4 * 1024 * 1024
"""Limit on the page; the page of a vLLM server has about 100 KiB for each data-parallel rank."""
_MOST_REQUESTS: Final = 2**31 - 1
_NAME: Final = re.compile(rb"vllm:num_requests_(running|waiting)(?=[ \t{]|$)")


def load_in(page: bytes) -> ServerLoad | None:
    """Return the counts of all ranks together; None for bytes that are no page with these counts.

    The labels are skipped. prometheus_client's parser would read them in a time that grows with the square of a line's
    length: half a second of CPU time for a page whose labels are full of quotation marks.
    """
    counts: dict[bytes, list[float]] = {b"running": [], b"waiting": []}
    for line in page.split(b"\n"):
        if (name := _NAME.match(line)) is None:
            continue
        try:
            value, *_ = line[name.end() :].rpartition(b"}")[2].split()  # a timestamp may follow
            counts[name[1]].append(float(value))
        except ValueError:
            return None
    totals = [sum(each) for each in counts.values()]
    if not all(each and all(value >= 0 for value in each) for each in counts.values()):
        return None
    running, waiting = totals
    return ServerLoad(round(running), round(waiting)) if max(totals) <= _MOST_REQUESTS else None
