"""The number of requests that vLLM generates at once: `max_num_seqs` in each data-parallel rank, or fewer.

The KV cache may hold fewer requests than `max_num_seqs`, and the token budget of one step may start fewer. The number
depends on the requests, so it is learnt from the scheduler's own counts. While requests wait in a rank, its places are
the largest number of requests that ran in one of its last steps. If more requests run while none waits, the places rise
to the number of running requests. The worker's pace keeps a few jobs waiting, so that more requests run if there is
room for them.

vLLM counts after a step, without the requests that the step ended: if a whole batch ends at once, the count has none of
its requests. These requests arrive as answers before the next count, so `Places` adds the answers to the count.

`Places` counts each step of vLLM in the worker. The engine for servers feeds a `Rank` with the counts of `/metrics`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

STEPS: Final = 32
"""The number of steps to remember. Only steps that left requests waiting are remembered.

A rank's places are the largest number of requests that ran in one of these steps.
"""
MARGIN: Final = 8
"""Cap on the reserve. The reserve is the minimum number of jobs that the worker keeps waiting in the engine.

Below the cap, the reserve is an eighth of the number of running jobs.
"""


def least_waiting(running: int) -> int:
    """Return the least number of jobs that should wait while this many jobs run."""
    return min(MARGIN, math.ceil(running / 8))


class Places:
    """The places of one engine. The event loop updates the counts; any thread may read `number`."""

    def __init__(self, number: int | None) -> None:
        """`number` is known before the engine is loaded; None means one place."""
        self.number = number or 1
        self._ranks: dict[int, Rank] = {}
        self._last: tuple[Rank, int, int] | None = None
        """The rank of the last count, with its running and its waiting requests."""
        self._answered = 0

    def loaded(self, limit: int, ranks: Sequence[int]) -> None:
        """Start over with a loaded engine: each rank has `limit` places as long as no request waits."""
        self._ranks = {rank: Rank(limit) for rank in ranks}
        self._last = None
        self.number = limit * len(ranks)

    def answered(self, count: int) -> None:
        """Count requests that ended by themselves. Aborted requests do not count, since they may never have run."""
        self._answered += count

    def counted(self, rank: int, running: int, waiting: int) -> None:
        """Note the scheduler's counts after one step of a rank."""
        if self._last is not None:
            stepped, ran, waited = self._last
            stepped.step(ran + self._answered, is_full=waited > 0)
            self.number = sum(one.places for one in self._ranks.values())
        self._last, self._answered = (self._ranks[rank], running, waiting), 0


class Rank:
    """The places of one data-parallel rank, or of a server."""

    def __init__(self, limit: int) -> None:
        """The places are `limit` until a request waits, and never more than `limit`."""
        self.places = self._limit = limit
        self._full: deque[int] = deque(maxlen=STEPS)
        """The number of requests that ran in each of the last steps that left requests waiting."""

    def step(self, ran: int, *, is_full: bool) -> None:
        """Note the requests that ran in one step; `is_full` is true if the step left requests waiting."""
        if is_full:
            self._full.append(ran)
        most = max(self._full) if is_full else max(ran, self.places)
        self.places = min(self._limit, max(1, most))
