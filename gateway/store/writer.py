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

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.store.dialects import insert
from gateway.store.engine import is_passing, take_turn, writing
from gateway.store.errors import OutcomeUnknown, StoreAway
from gateway.store.hold import Hold
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


@dataclass(slots=True)
class Change:
    """A function that writes rows, and the future of its result."""

    run: Run
    future: Future[Any]


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

    def start(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def submit(self, run: Run) -> Future[Any]:
        """Queue a change. Raises StoreAway if too many wait."""
        if self._changes.qsize() >= MOST_WAITING:
            raise StoreAway("the store is behind: too many changes wait")
        change = Change(run, Future())
        self._changes.put(change)
        return change.future

    def close(self) -> None:
        """Run the queued changes, then end the thread."""
        self._changes.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._changes.get()) is not None:
            together, ended = self._take(first)
            outcomes = self._outcomes([change.run for change in together])
            for announce in self.committed:
                announce()
            for change, outcome in zip(together, outcomes, strict=True):
                _resolve(change.future, outcome)
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
                return self._attempt(runs, careful=careful)
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
                    away = StoreAway(f"the store did not take a change ({type(error).__name__})")
                    return [_Raised(away)] * len(runs)
            except BaseException as error:  # no error may end the writer's thread
                return [_Raised(error)] * len(runs)

    def _attempt(self, runs: Sequence[Run], *, careful: bool) -> list[Any]:
        """Run a group in one transaction. Raises _ChangeRaised, _CommitUnanswered and SQLAlchemyError."""
        with self._engine.connect() as connection:
            with connection.begin() as transaction:
                self._begin(connection)
                outcomes = [(_careful if careful else _bold)(connection, run) for run in runs]
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
            connection.execute(upsert.on_conflict_do_update(index_elements=["id"], set_=row))

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


def _resolve(future: Future[Any], outcome: Any) -> None:
    """Set the future's outcome, unless its waiter has cancelled it."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, _Raised):
        future.set_exception(outcome.error)
    else:
        future.set_result(outcome)
