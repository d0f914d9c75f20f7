"""The writer: one thread, and group commit. Changes that wait together share one transaction.

A group first runs without savepoints, which would cost as much as the changes themselves. If a change raises, the
transaction is rolled back, and the group runs again with a savepoint for each change. A change that raises then takes
back its own rows only. So a change may run more than once, and must have no effect but its rows and its result.

A group whose transaction the database ended runs once more. The answer to COMMIT may be lost with the connection to
PostgreSQL. Then the writer takes the advisory lock again, which waits for the end of the lost transaction. The writer
then looks for the lost transaction's number in its own row of `writers`. So a committed group never runs again.
(`pg_xact_status` cannot be used: after a crash, the server gives the id of an unfinished transaction to another one.)
"""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, Self, cast

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.errors import OutcomeUnknown, StoreAway
from gateway.store.dialects import insert
from gateway.store.engine import Hold, cause_of, is_passing, take_turn, writing
from gateway.store.tables import writers
from telemetry.clock import Clock, Deadline, unix_ms

MOST_TOGETHER = 256
"""The maximum number of changes that one transaction carries."""
MOST_WAITING = 8_192
"""The maximum number of changes that may wait. A database that is stuck must not fill the memory."""
RESOLVE_SECONDS = 20.0
"""The time for which the writer keeps asking if a transaction was committed."""
_ASK_AGAIN_SECONDS = 0.2
_TRIES = 2

Run = Callable[[Connection], Any]


class JointChange(Protocol):
    """A change that can be written together with its neighbours of the same class, by fewer statements."""

    def __call__(self, connection: Connection) -> Any:
        """Write this change alone, and return its result."""
        ...

    @classmethod
    def together(cls, connection: Connection, changes: Sequence[Self]) -> list[Any] | None:
        """Write changes, and return their results; None if they have to be written one by one.

        Rows that were written before None was returned are taken back.
        """
        ...


@dataclass(slots=True)
class Change:
    """A function that writes rows, and the future of its result."""

    run: Run
    future: Future[Any] | asyncio.Future[Any]


@dataclass(slots=True)
class _Raised:
    """The outcome of a change that raised."""

    error: BaseException


class _ChangeRaised(Exception):  # noqa: N818 - private: the group runs again with savepoints
    """A change of a group without savepoints raised."""


class _CommitUnanswered(Exception):  # noqa: N818 - private
    """The connection was lost before the answer to COMMIT."""

    def __init__(self, outcomes: list[Any]) -> None:
        super().__init__()
        self.outcomes = outcomes


class Writer:
    """Runs changes in the order of their submission. Thread-safe."""

    def __init__(self, engine: Engine, clock: Clock, hold: Hold) -> None:
        self._engine = writing(engine, hold)
        self._clock = clock
        self._changes: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._id = uuid.uuid4().hex
        self._transaction = 0
        self._thread = threading.Thread(target=self._work, name="store-write", daemon=True)
        self.committed: list[Callable[[], None]] = []
        """Functions that are called on the writer's thread after each commit."""
        self.problem: str | None = None
        """The reason why the last group was not written; None if it was."""
        self.busy_since: float | None = None
        """The monotonic time at which the present group began; None between groups."""
        self._hold = hold
        self._server: Any = None
        """The start time of the PostgreSQL server that took the last transaction."""

    def start(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def submit(self, run: Run) -> Future[Any]:
        """Queue a change. Raises StoreAway if too many wait."""
        future: Future[Any] = Future()
        self._put(Change(run, future))
        return future

    def submit_for(self, run: Run, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
        """Queue a change for a coroutine of this loop, which is woken once for all changes of a transaction."""
        future = loop.create_future()
        self._put(Change(run, future))
        return future

    def _put(self, change: Change) -> None:
        if self._changes.qsize() >= MOST_WAITING:
            raise StoreAway("the store is behind: too many changes wait")
        self._changes.put(change)

    def close(self) -> None:
        """Run the queued changes, then end the thread."""
        self._changes.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._changes.get()) is not None:
            together, ended = self._take(first)
            self.busy_since = self._clock.monotonic()
            outcomes = self._outcomes([change.run for change in together])
            self.busy_since = None
            for announce in self.committed:
                announce()
            _resolve_all(zip(together, outcomes, strict=True))
            if ended:
                return

    def _take(self, first: Change) -> tuple[list[Change], bool]:
        together = [first]
        while len(together) < MOST_TOGETHER:
            try:
                change = self._changes.get_nowait()
            except queue.Empty:
                break
            if change is None:
                return together, True
            together.append(change)
        return together, False

    def _outcomes(self, runs: Sequence[Run]) -> list[Any]:
        """Run a group until the database takes it, or _TRIES attempts fail.

        Returns a result or _Raised for each change.
        """
        careful, failures = False, 0
        while True:
            try:
                outcomes = self._attempt(runs, careful=careful)
                self.problem = None
                return outcomes
            except _ChangeRaised:
                careful = True
            except _CommitUnanswered as unanswered:
                try:
                    if self._is_committed():
                        return unanswered.outcomes
                except StoreAway as error:
                    return [_Raised(error)] * len(runs)
                failures += 1
            except SQLAlchemyError as error:
                failures += 1
                if failures == _TRIES:
                    self.problem = f"the store did not take a change: {cause_of(error)}"
                    return [_Raised(StoreAway(self.problem))] * len(runs)
            except BaseException as error:  # no error may end the writer's thread
                return [_Raised(error)] * len(runs)

    def _attempt(self, runs: Sequence[Run], *, careful: bool) -> list[Any]:
        """Run a group in one transaction. Raises _ChangeRaised, _CommitUnanswered and SQLAlchemyError."""
        with self._engine.connect() as connection:
            with connection.begin() as transaction:
                self._begin(connection)
                outcomes = [
                    outcome for some in _joined(runs) for outcome in _written(connection, some, careful=careful)
                ]
                try:
                    transaction.commit()
                except DBAPIError as error:
                    if connection.dialect.name != "postgresql" or not is_passing(error):
                        raise
                    raise _CommitUnanswered(outcomes) from error
            return outcomes

    def _begin(self, connection: Connection) -> None:
        take_turn(connection)
        if connection.dialect.name == "postgresql":
            self._transaction += 1
            row = {"transaction": self._transaction, "at": unix_ms(self._clock)}
            upsert = insert(connection, writers).values(id=self._id, **row)
            upsert = upsert.on_conflict_do_update(index_elements=["id"], set_=row)
            server = connection.scalar(upsert.returning(func.pg_postmaster_start_time()))
            if self._server is not None and server != self._server:
                self._hold.move()  # before the first change of this transaction, which would number its rows
            self._server = server

    def _is_committed(self) -> bool:
        """Find out if the last transaction was committed. Raises OutcomeUnknown."""
        deadline, last = Deadline.after(self._clock, RESOLVE_SECONDS), writers.c.transaction
        while not deadline.passed:
            try:
                with self._engine.begin() as connection:
                    take_turn(connection)
                    found: int | None = connection.scalar(select(last).where(writers.c.id == self._id))
                    return found == self._transaction
            except SQLAlchemyError:  # the server may be recovering, so ask again
                self._clock.sleep(_ASK_AGAIN_SECONDS)
        raise OutcomeUnknown("the store did not say if it took a change")


def _joined(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Yield the changes in their order, with adjacent joint changes of one class in one list."""
    for kind, some in groupby(runs, key=lambda run: type(run) if hasattr(run, "together") else None):
        if kind is None:
            yield from ([run] for run in some)
        else:
            yield list(some)


def _written(connection: Connection, runs: Sequence[Run], *, careful: bool) -> list[Any]:
    """Write changes, joint ones by few statements. A joint change that is refused leaves the others of its group alone.

    Raises _ChangeRaised and SQLAlchemyError.
    """
    if len(runs) == 1:
        return [(_careful if careful else _bold)(connection, runs[0])]
    savepoint, first = connection.begin_nested(), cast("JointChange", runs[0])
    try:
        found = first.together(connection, cast("Sequence[Any]", runs))
    except Exception as error:
        if isinstance(error, DBAPIError) and is_passing(error):
            raise
        found = None  # one of the changes raises again when it is written alone
    if found is not None:
        savepoint.commit()
        return found
    savepoint.rollback()
    return [_careful(connection, run) for run in runs]


def _bold(connection: Connection, run: Run) -> Any:
    try:
        return run(connection)
    except DBAPIError as error:
        if is_passing(error):
            raise
        raise _ChangeRaised from error
    except Exception as error:
        raise _ChangeRaised from error


def _careful(connection: Connection, run: Run) -> Any:
    """Run a change; return its result, or take its rows back and return its error. Raises SQLAlchemyError."""
    try:
        with connection.begin_nested():
            return run(connection)
    except DBAPIError as error:
        if is_passing(error):
            raise
        return _Raised(error)
    except Exception as error:
        return _Raised(error)


def _resolve_all(changes: Iterable[tuple[Change, Any]]) -> None:
    """Set the outcomes of a transaction's changes, and wake each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for change, outcome in changes:
        if isinstance(change.future, asyncio.Future):
            by_loop.setdefault(change.future.get_loop(), []).append((change.future, outcome))
        else:
            _resolve(change.future, outcome)
    for loop, some in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed, and nothing waits there
            loop.call_soon_threadsafe(_resolve_here, some)


def _resolve_here(some: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in some:
        if future.done():
            continue
        if isinstance(outcome, _Raised):
            future.set_exception(outcome.error)
            future.exception()  # marks the error as read, in case the waiter is gone
        else:
            future.set_result(outcome)


def _resolve(future: Future[Any], outcome: Any) -> None:
    """Set the future's outcome, unless its waiter has cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, _Raised):
        future.set_exception(outcome.error)
    else:
        future.set_result(outcome)
