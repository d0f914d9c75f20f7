"""The time limit of one search. The wait for a turn does not count, since the service does not cause this wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

_current: ContextVar[Allowance | None] = ContextVar("allowance", default=None)
"""The running search's allowance: a context variable, so that providers need not pass it to their requests."""


class Allowance:
    """An asynchronous context manager that raises TimeoutError if its body takes longer than `seconds`.

    The clock stops while the search waits `in_line` for a turn.
    """

    def __init__(self, seconds: float) -> None:
        self.left_seconds = seconds
        """The remaining seconds, updated only when the search starts to wait and when it ends."""
        self.had_a_turn = False
        """True after the search's first turn.

        From then on, the search's requests go before searches that have had no turn.
        """
        self._limit = asyncio.timeout(None)
        self._in_line = 0
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._is_open = True
        self._run()
        self._token = _current.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        if not self._in_line:
            self._stand_still()
        self._is_open = False
        await self._limit.__aexit__(kind, error, trace)

    @contextmanager
    def in_line(self) -> Iterator[None]:
        """Stop the clock while the body waits for a turn. Several requests of a search may wait at once."""
        if not self._in_line:
            self._stand_still()
        self._in_line += 1
        try:
            yield
        finally:
            self._in_line -= 1
            if not self._in_line:
                self._run()

    def _run(self) -> None:
        if self._is_open and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + self.left_seconds)

    def _stand_still(self) -> None:
        ends = self._limit.when()
        if ends is not None:
            self.left_seconds = max(0.0, ends - asyncio.get_running_loop().time())
        if self._is_open and not self._limit.expired():
            self._limit.reschedule(None)


def current_allowance() -> Allowance:
    """Return the running search's allowance; outside of a search, return an allowance without a limit."""
    return _current.get() or Allowance(0.0)
