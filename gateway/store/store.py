"""The database behind one writer thread with group commit; reads run in threads of their own.

A change is a function of a connection. Changes that wait together share one transaction, each in a savepoint of its
own: a change that raises takes back its own rows only. A change's future resolves after the commit.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from gateway.store.tables import metadata

T = TypeVar("T")

MOST_TOGETHER = 256
"""Changes that one transaction carries at most."""
READERS = 8


class StoreAway(Exception):  # noqa: N818 - it names what happened
    """The database cannot be reached, or ended the transaction; the request may be repeated."""


@dataclass(slots=True)
class _Change:
    run: Callable[[Connection], Any]
    future: Future[Any]


class Store:
    """Reads and writes of one database. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._writer = threading.Thread(target=self._write_all, name="store-write", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the database and create missing tables. Raises StoreAway."""
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_immediate)
        try:
            metadata.create_all(engine)
        except SQLAlchemyError as error:
            raise StoreAway(f"the store cannot be opened ({type(error).__name__}); check POSTBACK_STORE__URL") from None
        return cls(engine)

    def submit(self, change: Callable[[Connection], T]) -> Future[T]:
        """Queue a change for the writer. The future raises the change's own error, or StoreAway."""
        future: Future[T] = Future()
        self._changes.put(_Change(change, future))
        return future

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run a change in the writer's next transaction; return its result after the commit."""
        return await asyncio.wrap_future(self.submit(change))

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query in a thread. Raises StoreAway."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, query)

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """Run a query in the calling thread. Raises StoreAway."""
        try:
            with self._engine.connect() as connection:
                return query(connection)
        except SQLAlchemyError as error:
            raise StoreAway(f"the store does not answer ({type(error).__name__})") from None

    def close(self) -> None:
        """Write what is queued, then close all connections."""
        self._changes.put(None)
        self._writer.join()
        self._readers.shutdown()
        self._engine.dispose()

    def _write_all(self) -> None:
        while (first := self._changes.get()) is not None:
            together, ended = self._take(first)
            self._commit(together)
            if ended:
                return

    def _take(self, first: _Change) -> tuple[list[_Change], bool]:
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

    def _commit(self, together: list[_Change]) -> None:
        outcomes: list[Any] = []
        try:
            with self._engine.begin() as connection:
                outcomes = [_tried(connection, change.run) for change in together]
        except SQLAlchemyError as error:
            away = StoreAway(f"the store did not take a change ({type(error).__name__})")
            outcomes = [away] * len(together)
        for change, outcome in zip(together, outcomes, strict=True):
            if isinstance(outcome, Exception):
                change.future.set_exception(outcome)
            else:
                change.future.set_result(outcome)


def _tried(connection: Connection, run: Callable[[Connection], Any]) -> Any:
    """Return the change's result, or its own error after its rows are taken back. Raises SQLAlchemyError."""
    try:
        with connection.begin_nested():
            return run(connection)
    except SQLAlchemyError:
        raise
    except Exception as error:
        return error


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions itself, see `_begin_immediate`
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
