"""The number of requests that a server may have at once: by its own counts, or else by its refusals.

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

import math
import re
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Final

from workers.engines.places import Rank

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


class AnswerLimit:
    """The limit of a server that reports no counts, found by additive increase and multiplicative decrease."""

    def __init__(self, first: int, most: int) -> None:
        self._limit = float(min(first, most))
        self._most = most
        self._goal = math.inf
        """The limit up to which each answer raises the limit by one: half of the limit at the last refusal."""
        self._begun = self._halved_at = 0
        self._has_answered = False
        """True if the server has answered since its last refusal."""
        self._before = self._limit
        """The limit before the refusals since the last answer."""

    @property
    def number(self) -> int:
        """The limit in requests, at least 1."""
        return int(self._limit)

    def begin(self) -> int:
        """Count a request that is sent now, and return its number."""
        self._begun += 1
        return self._begun

    def answered(self, in_flight: int) -> None:
        """Note an answer. The limit rises only if the requests in flight, including the answered one, use all slots."""
        self._has_answered = True
        if in_flight >= self.number:
            step = 1.0 if self._limit < self._goal else 1 / self._limit
            self._limit = min(float(self._most), self._limit + step)

    def refused(self, number: int, in_flight: int) -> None:
        """Note a refusal of request `number` while this many requests are in flight.

        A refusal halves the limit, except if it concerns the former limit: if the request was sent before the last
        halving, or if more requests than the limit are still in flight. A server that was away refuses all requests.
        Then `_goal` stays the same, so that the limit soon rises to its former value.
        """
        if number > self._halved_at and in_flight <= self.number:
            if self._has_answered:
                self._before, self._goal = self._limit, self._limit / 2
            self._limit = max(1.0, self._limit / 2)
            self._halved_at = self._begun
            self._has_answered = False

    def restore(self) -> None:
        """Return to the limit before the last refusals, which came from a server that was away and not busy."""
        self._limit = max(self._limit, self._before)

    def timed_out(self, number: int, in_flight: int) -> None:
        """Note a timeout of request `number`, as a refusal if no slot is free.

        While slots are free, do nothing, because the request itself is the likelier cause.
        """
        if in_flight >= self.number:
            self.refused(number, in_flight)

    def unless_refused(self, number: int) -> None:
        """Use this limit, unless the server has refused a request after an answer."""
        if self._goal == math.inf:
            self._limit = float(min(number, self._most))


class CountLimit:
    """The places of a server that reports its counts."""

    def __init__(self, most: int) -> None:
        self._rank = Rank(most)
        self._queue: deque[int] = deque(maxlen=QUEUE_LOOKS)
        """The number of running requests at each of the last looks in a row that found requests waiting."""

    @property
    def places(self) -> int:
        """The number of this worker's requests that the server runs at once."""
        return self._rank.places

    def told(self, load: ServerLoad, in_flight: int) -> None:
        """Note the server's counts. This worker has `in_flight` requests at the server.

        Only the fraction of running requests in the counts matters, since the server counts a request for several
        answers several times.
        """
        if not load.running or not in_flight:
            return
        both = load.running + load.waiting
        ran = math.ceil(min(in_flight, both) * load.running / both)
        if not load.waiting:
            self._queue.clear()
            self._rank.step(ran, is_full=False)
            return
        self._queue.append(ran)
        if len(self._queue) == QUEUE_LOOKS:
            self._rank.step(max(self._queue), is_full=True)


# -- The counts of a vLLM server, on its page `/metrics` in Prometheus' text format --
MOST_BYTES: Final = 4 * 1024 * 1024
"""Limit on the page; the page of a vLLM server has about 100 KiB for each data-parallel rank."""
_MOST_LINES: Final = 1024
"""Limit on the lines with counts: one for each count, model and rank."""
_MOST_REQUESTS: Final = 2**31 - 1
_START: Final = rb"^vllm:num_requests_(?:running|waiting)(?:[ \t{]|$)"
_LINE: Final = re.compile(_START, re.MULTILINE)
_COUNT: Final = re.compile(
    rb"^vllm:num_requests_(running|waiting)[ \t]*+(?:\{[^\n]{0,1000}\}[ \t]*+|(?<=[ \t]))"
    rb"([0-9.eE+-]{1,32})(?:[ \t]++-?[0-9]{1,20})?+[ \t\r]*+$",
    re.MULTILINE,
)
"""Matches a line with a count, and a timestamp if the line has one.

The expression skips the labels. It replaces prometheus_client's parser, whose time grows with the square of a line's
length: that parser takes half a second of CPU time for a page whose labels are full of quotation marks.
"""


def load_in(page: bytes) -> ServerLoad | None:
    """Return the counts of all ranks together; None for bytes that are no page with these counts."""
    lines = sum(1 for _ in islice(_LINE.finditer(page), _MOST_LINES + 1))
    counts = [found.groups() for found in islice(_COUNT.finditer(page), _MOST_LINES + 1)]
    if lines > _MOST_LINES or len(counts) != lines:
        return None
    running, waiting = (_count([value for name, value in counts if name == kind]) for kind in (b"running", b"waiting"))
    return ServerLoad(running, waiting) if running is not None and waiting is not None else None


def _count(values: list[bytes]) -> int | None:
    """Return the sum of the values; None without values, and for values that cannot be numbers of requests."""
    try:
        total = sum(map(float, values))
    except ValueError:
        return None
    is_count = bool(values) and all(float(value) >= 0 for value in values) and math.isfinite(total)
    return round(total) if is_count and total <= _MOST_REQUESTS else None
