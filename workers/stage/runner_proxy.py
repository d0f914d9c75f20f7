"""The Kafka thread's proxy of the runner, which runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from workers.stage.partition import Partition
from workers.stage.record import Record
from workers.stage.runner import Runner


class RunnerProxy:
    """Passes calls to the runner on the event loop. Each method returns at once; the order of calls is kept."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the runner. `Stage.run` sets it before the first call."""
        self._dispatched = 0
        self._surplus = 0

    @property
    def not_begun(self) -> int:
        """The number of dispatched records that wait for the event loop: their handlers have not begun."""
        return self._dispatched - self.runner.begun

    @property
    def is_deferring(self) -> bool:
        """True until the surplus of the last `defer` is deferred."""
        return self._surplus > self.runner.deferred

    def start(self, batch: list[tuple[Partition, Record]], now: float) -> None:
        """Call `Runner.start`. `now`: monotonic seconds of the dispatch."""
        self._dispatched += len(batch)
        self._on_loop(self.runner.start, batch, now)

    def give_up(self, partition: Partition, record: Record, attempts: int, now: float) -> None:
        """Call `Runner.give_up`."""
        self._on_loop(self.runner.give_up, partition, record, attempts, now)

    def defer(self, surplus: list[tuple[Partition, Record]], now: float) -> None:
        """Call `Runner.defer`."""
        self._surplus += len(surplus)
        self._on_loop(self.runner.defer, surplus, now)

    def cancel(self, partition: Partition) -> None:
        """Call `Runner.cancel`."""
        self._on_loop(self.runner.cancel, partition)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        assert self.loop is not None, "run() comes first"  # noqa: S101 - an invariant, not a check of input
        self.loop.call_soon_threadsafe(call, *args)
