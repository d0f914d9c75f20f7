"""The event loop's side of a stage: the runner calls the handler and hands the outputs back to the Kafka thread."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from workers.stage.defects import HANDLER_DEFECT, Call, Defects, LastResort
from workers.stage.partition import Partition
from workers.stage.record import Failure, Handler, HandlerCrashed, Output, Record, size_of
from workers.stage.sharing import Sharing

MAX_OUTPUT_BYTES = 1_000_000
"""A broker refuses larger outputs. The transaction would abort, and so would each repetition."""

AT_A_TIME_SECONDS = 0.001
"""The time for which records run, or are deferred, one after the other before the loop serves its other tasks."""
PACED_AT_A_TIME_SECONDS = 0.00025
"""AT_A_TIME_SECONDS of a paced stage, whose records become due by the hundred. Stages on one event loop take turns. A
paced stage has a quarter of the time of other stages, so that their records wait less behind its records. A callback
takes only one and a half milliseconds in all, so one more millisecond in the queue would delay a callback much."""


@dataclass(slots=True)
class Handled:
    """A record whose handler has returned. `outputs` is None if the engine died with the record."""

    partition: Partition
    record: Record
    outputs: Sequence[Output] | None
    dispatched_at: float
    """The monotonic time of the dispatch."""
    deferred: bool = False
    """True if the record was deferred untried, so that it does not count as running."""

    @property
    def may_linger(self) -> bool:
        """True if there are outputs, and all of them may be settled later."""
        if not self.outputs:
            return False
        return all(output.may_linger for output in self.outputs)

    @property
    def output_bytes(self) -> int:
        """The size of all output values."""
        return sum([len(output.value or b"") for output in self.outputs or ()])


_Dispatched = tuple[Partition, Record, float]
"""A record that has not begun, and the monotonic seconds of its dispatch."""


class OutputTooLarge(Exception):  # noqa: N818 - it names what is wrong
    """An output is larger than a broker accepts."""


class Runner:
    """Runs the handler for each dispatched record. Every method but the constructor runs on the event loop.

    A record whose handler has to wait has a task of its own. Records that need not wait share a task for a while, since
    making a task costs as much as handling many of these records.

    Each record completes, even if its handler raises. If `handle` raises, `give_up` returns the outputs; if `give_up`
    raises, the last resort does. If the last resort raises or is missing, the record is settled without outputs.
    """

    def __init__(
        self,
        handler: Handler,
        completions: SimpleQueue[list[Handled]],
        defects: Defects,
        sharing: Sharing | None = None,
        last_resort: LastResort | None = None,
        at_a_time_seconds: float = AT_A_TIME_SECONDS,
    ) -> None:
        """`at_a_time_seconds`: the time for which records run before the loop serves its other tasks."""
        self._handler = handler
        self._defects = defects
        self._sharing = sharing
        self._last_resort = last_resort or _pass_over
        self._completions = completions
        self._done: list[Handled] = []
        """Completions that the Kafka thread gets at the loop's next turn, all at once."""
        self.at_a_time_seconds = at_a_time_seconds
        self._queue: deque[_Dispatched] = deque()
        self.begun = 0
        """The number of dispatched records whose handlers have begun or were cancelled.

        The Kafka thread reads this too.
        """
        self._beginning = False
        self._surplus: deque[_Dispatched] = deque()
        """Records to defer."""
        self.deferred = 0
        """The number of surplus records that are deferred or were cancelled. The Kafka thread reads this too."""
        self._turn = 0
        self._newest: asyncio.Task[None] | None = None
        """Keeps the newest task alive until it has begun, because the event loop has only a weak reference to a
        task."""
        self._tasks: dict[Partition, dict[int, asyncio.Task[None] | None]] = defaultdict(dict)
        """Records whose handlers have begun, by offset."""

    def start(self, dispatched: list[tuple[Partition, Record]], now: float) -> None:
        """Run the handler for each of these records. `now`: monotonic seconds of the dispatch."""
        self._queue.extend([(partition, record, now) for partition, record in dispatched])
        if not self._beginning:
            self._begin()

    def give_up(self, partition: Partition, record: Record, attempts: int, now: float) -> None:
        """Complete a record that killed its worker each time it ran alone."""
        failure = Failure("worker_killed", f"the job ended its worker {attempts} times while it ran alone", attempts)
        self._complete(Handled(partition, record, self._given_up(record, failure), now))

    def defer(self, surplus: list[tuple[Partition, Record]], now: float) -> None:
        """Complete records beyond their party's share with the outputs of `Sharing.defer`, without handling them."""
        self._surplus.extend([(partition, record, now) for partition, record in surplus])
        self._defer_some()

    def cancel(self, partition: Partition) -> None:
        """Cancel all handlers and queued records of a partition that another worker gets."""
        surplus = deque(entry for entry in self._surplus if entry[0] is not partition)
        self.deferred += len(self._surplus) - len(surplus)
        self._surplus = surplus
        kept = deque(entry for entry in self._queue if entry[0] is not partition)
        self.begun += len(self._queue) - len(kept)
        self._queue = kept
        for task in self._tasks.pop(partition, {}).values():
            if task is not None:
                task.cancel()

    def _defer_some(self) -> None:
        """Defer surplus records for a short time.

        The remaining surplus records wait until the event loop has run its other tasks, since handling records is more
        urgent than deferring them.
        """
        began = time.perf_counter()
        while self._surplus and time.perf_counter() - began < self.at_a_time_seconds:
            partition, record, since = self._surplus.popleft()
            self.deferred += 1
            self._complete(Handled(partition, record, self._deferred(record), since, deferred=True))
        if self._surplus:
            asyncio.get_running_loop().call_soon(self._defer_some)

    def _begin(self) -> None:
        """Start a task for the queued records, and schedule the next `_begin` for when this task has ended or waits."""
        self._beginning = bool(self._queue)
        if self._beginning:
            self._turn += 1
            loop = asyncio.get_running_loop()
            self._newest = loop.create_task(self._work(self._turn))
            loop.call_soon(self._begin)

    async def _work(self, turn: int) -> None:
        """Run queued records one after the other for a while.

        If a handler waits, another task runs the remaining records.
        """
        task, now = asyncio.current_task(), time.perf_counter  # loop.time() would not do: it may stand still
        until, outputs = now() + self.at_a_time_seconds, None
        while turn == self._turn and self._queue and now() < until:
            partition, record, dispatched_at = self._queue.popleft()
            self.begun += 1
            tasks = self._tasks[partition]
            tasks[record.offset] = task
            try:
                outputs = self._checked(record, await self._handler.handle(record))
            except HandlerCrashed:
                outputs = None
            except asyncio.CancelledError as error:
                if task is None or task.cancelling():
                    raise
                # The CancelledError came from inside the handler: the record's own task was not cancelled.
                outputs = self._after_defect("handle", record, _Stray().with_traceback(error.__traceback__))
            except Exception as error:
                outputs = self._after_defect("handle", record, error)
            finally:
                del tasks[record.offset]
            self._complete(Handled(partition, record, outputs, dispatched_at))

    def _complete(self, completion: Handled) -> None:
        if not self._done:
            asyncio.get_running_loop().call_soon(self._hand_back)
        self._done.append(completion)

    def _hand_back(self) -> None:
        done, self._done = self._done, []
        self._completions.put(done)

    def _deferred(self, record: Record) -> Sequence[Output]:
        assert self._sharing is not None, "only a stage with a Sharing defers records"  # noqa: S101 - an invariant
        try:
            return self._checked(record, self._sharing.defer(record))
        except Exception as error:
            return self._after_defect("defer", record, error)

    def _checked(self, record: Record, outputs: Sequence[Output]) -> Sequence[Output]:
        try:
            return _within_bounds(outputs)
        except OutputTooLarge:
            return self._given_up(record, Failure("internal_error", "an output is larger than a record may be", 1))

    def _after_defect(self, call: Call, record: Record, error: Exception) -> Sequence[Output]:
        self._defects.met(call, record, error)
        message = f"the worker met an unexpected {type(error).__qualname__}"
        return self._given_up(record, Failure("internal_error", message, 1))

    def _given_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return the outputs of giving up.

        Never raises, because a record without completion would block its partition.
        """
        record.shows_health = False
        try:
            return _within_bounds(self._handler.give_up(record, failure))
        except Exception as error:
            self._defects.met("give_up", record, error)
            message = f"the worker can neither handle the record nor give it up ({type(error).__qualname__})"
        try:
            return _within_bounds(self._last_resort(record, Failure(HANDLER_DEFECT, message, failure.attempts)))
        except Exception as error:
            self._defects.met("last_resort", record, error)
            return ()


class _Stray(Exception):  # noqa: N818 - it names what was met
    """A CancelledError that did not come from cancelling the record's own task."""


def _pass_over(record: Record, failure: Failure) -> Sequence[Output]:
    """The default last resort: return no outputs."""
    return ()


def _within_bounds(outputs: Sequence[Output]) -> Sequence[Output]:
    """Return the outputs if a broker would accept all of them.

    Raises OutputTooLarge, and other errors for wrong types.
    """
    if any(map(is_too_large, outputs)):
        raise OutputTooLarge
    return outputs


def is_too_large(output: Output) -> bool:
    """Return whether value, key and headers together exceed MAX_OUTPUT_BYTES."""
    size = len(output.value or b"") + len(output.key or b"")
    return size + size_of(output.headers) > MAX_OUTPUT_BYTES if output.headers else size > MAX_OUTPUT_BYTES


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
