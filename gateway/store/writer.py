"""The writer: one thread, and group commit. Changes that wait together share one transaction.

A change that raises takes back its own rows only, by its savepoint. Joint changes, such as the requests for jobs, have
one savepoint and few statements together, and each may be refused without the others.

A group whose transaction the database ended runs once more, so a change must have no effect but its rows and its
result. The answer to COMMIT may be lost with the connection to PostgreSQL. Then the writer takes the advisory lock
again, which waits for the end of the lost transaction. The writer then looks for the lost transaction's number in its
own row of `writers`. So a committed group never runs again.
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
from typing import Any, Self, cast

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.errors import OutcomeUnknown, StoreAway
from gateway.store.dialects import insert
from gateway.store.engine import Fresh, Hold, cause_of, fresh_rows, is_passing, take_turn, writing
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
"""A change. One whose class has a method `together` is joint: it is written with its neighbours of the same class.

`together` takes the connection and the changes, and returns for each its result, or Refused. It raises an error that
one of them causes; each is then written alone.
"""


@dataclass(slots=True)
class Change:
    """A function that writes rows, and the future of its result."""

    run: Run
    future: Future[Any] | asyncio.Future[Any]


@dataclass(slots=True)
class Refused:
    """The outcome of a change that raised, or that wrote nothing."""

    error: BaseException


class _CommitUnanswered(Exception):  # noqa: N818 - private
    """The connection was lost before the answer to COMMIT."""

    def __init__(self, outcomes: list[Any], error: DBAPIError) -> None:
        super().__init__()
        self.outcomes = outcomes
        self.error = error


class Writer:
    """Runs changes in the order of their submission. Thread-safe."""

    def __init__(self, engine: Engine, clock: Clock, hold: Hold) -> None:
        self._fresh: Fresh = []
        """The rows that the present transaction adds to the outbox."""
        self._engine = writing(engine, hold, self._fresh)
        self._clock = clock
        self._changes: queue.SimpleQueue[Change | None] = queue.SimpleQueue()
        self._id = uuid.uuid4().hex
        self._transaction = 0
        self._thread = threading.Thread(target=self._work, name="store-write", daemon=True)
        self.committed: list[Callable[[Fresh], None]] = []
        """Functions that are called on the writer's thread after each commit, with the new rows of the outbox."""
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
            fresh = list(self._fresh)
            for announce in self.committed:
                announce(fresh)
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

        Returns a result or Refused for each change.
        """
        for _ in range(_TRIES):
            try:
                outcomes = self._attempt(runs)
                self.problem = None
                return outcomes
            except _CommitUnanswered as unanswered:
                try:
                    if self._is_committed():
                        return unanswered.outcomes
                except StoreAway as error:
                    return self._refused(error, runs)
                cause = cause_of(unanswered.error)
            except SQLAlchemyError as error:
                cause = cause_of(error)
            except BaseException as error:  # no error may end the writer's thread
                return self._refused(error, runs)
        self.problem = f"the store did not take a change: {cause}"
        return self._refused(StoreAway(self.problem), runs)

    def _refused(self, error: BaseException, runs: Sequence[Run]) -> list[Any]:
        self._fresh.clear()
        return [Refused(error)] * len(runs)

    def _attempt(self, runs: Sequence[Run]) -> list[Any]:
        """Run a group in one transaction. Raises _CommitUnanswered and SQLAlchemyError."""
        self._fresh.clear()
        with self._engine.connect() as connection:
            with connection.begin() as transaction:
                self._begin(connection)
                outcomes = [outcome for some in _joined(runs) for outcome in _written(connection, some)]
                try:
                    transaction.commit()
                except DBAPIError as error:
                    if connection.dialect.name != "postgresql" or not is_passing(error):
                        raise
                    raise _CommitUnanswered(outcomes, error) from error
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


def _written(connection: Connection, runs: Sequence[Run]) -> list[Any]:
    """Write changes, joint ones together unless one of them raises. Raises SQLAlchemyError."""
    if len(runs) > 1:
        joint = cast("Sequence[Any]", runs)
        found = _savepoint(connection, lambda connection: type(joint[0]).together(connection, joint))
        if not isinstance(found, Refused):
            return cast("list[Any]", found)
    return [_savepoint(connection, run) for run in runs]


def _savepoint(connection: Connection, run: Callable[[Connection], Any]) -> Any:
    """Run a change; return its result, or take its rows back and return its error. Raises SQLAlchemyError."""
    fresh = fresh_rows(connection)
    before = len(fresh)
    try:
        with connection.begin_nested():
            return run(connection)
    except DBAPIError as error:
        if is_passing(error):
            raise
        refused = Refused(error)
    except Exception as error:
        refused = Refused(error)
    del fresh[before:]
    return refused


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
        if isinstance(outcome, Refused):
            future.set_exception(outcome.error)
            future.exception()  # marks the error as read, in case the waiter is gone
        else:
            future.set_result(outcome)


def _resolve(future: Future[Any], outcome: Any) -> None:
    """Set the future's outcome, unless its waiter has cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Refused):
        future.set_exception(outcome.error)
    else:
        future.set_result(outcome)
