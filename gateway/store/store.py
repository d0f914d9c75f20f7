"""The database behind one writer thread with group commit; reads run in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.errors import OutcomeUnknown, StoreAway
from gateway.store.engine import Fresh, Hold, cause_of, is_passing, open_engine, take_turn, writing
from gateway.store.meta import store_id
from gateway.store.schema import require_current, upgrade
from gateway.store.writer import Writer
from telemetry.clock import Clock, SystemClock

__all__ = ["OutcomeUnknown", "Store", "StoreAway"]

T = TypeVar("T")

READERS = 8
WRITE_SECONDS = 60.0
"""The longest wait for a change. A database that is stuck must not block its requests for ever."""
READ_SECONDS = 30.0
"""The longest wait for a query."""
SILENT = "the store does not answer"
SILENT_SECONDS = 5.0
"""The time without an answer after which the database counts as away."""

_CLOCK = SystemClock()


class Store:
    """Reads and writes of one database. Thread-safe.

    A change is a function of a connection. A change may run more than once, and must have no effect but its rows and
    its result. If a change raises, only its own rows are taken back, not those of other changes in the same
    transaction. Both databases run the writes of all processes one after the other, so a change may read and then write
    without a lock.
    """

    def __init__(self, engine: Engine, clock: Clock = _CLOCK) -> None:
        self._engine = engine
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self.hold = Hold()
        """While the hold has a reason, this process writes nothing into the outbox."""
        self.silent = False
        """True while the database does not answer at all, so that requests are refused at once."""
        self._writer = Writer(engine, clock, self.hold).start()

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the database, and make the tables of an empty one. Raises StoreAway, OtherSchema."""
        engine = open_engine(url)
        try:
            with writing(engine).begin() as connection:
                take_turn(connection)
                require_current(connection)
                store_id(connection)
        except SQLAlchemyError as error:
            engine.dispose()
            raise StoreAway(f"the store cannot be opened: {cause_of(error)}; check POSTBACK_STORE__URL") from None
        except StoreAway:
            engine.dispose()
            raise
        return cls(engine)

    @staticmethod
    def upgrade(url: str) -> tuple[int | None, int]:
        """Bring a store to the newest schema. Returns the numbers before and after. Raises StoreAway."""
        engine = open_engine(url)
        try:
            with writing(engine).begin() as connection:
                take_turn(connection)
                return upgrade(connection)
        except SQLAlchemyError as error:
            raise StoreAway(f"the store cannot be upgraded: {cause_of(error)}; see the database's log") from None
        finally:
            engine.dispose()

    @property
    def dialect(self) -> str:
        """The database's kind: `sqlite` or `postgresql`."""
        return self._engine.dialect.name

    def on_commit(self, call: Callable[[Fresh], None]) -> None:
        """Call a function after each group of this process, on the writer's thread, with the outbox's new rows.

        The function must not block or raise.
        """
        self._writer.committed.append(call)

    def submit(self, change: Callable[[Connection], T]) -> Future[T]:
        """Queue a change for the writer. Raises StoreAway if too many wait.

        The future raises the change's own error, StoreAway or OutcomeUnknown.
        """
        return self._writer.submit(change)

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run a change in the writer's next transaction; return its result after the commit.

        Raises the change's own error, StoreAway (at once while the store is silent), and OutcomeUnknown.
        """
        self._require_answers()
        loop = asyncio.get_running_loop()
        future = self._writer.submit_for(change, loop)
        patience = loop.call_later(WRITE_SECONDS, _give_up, future)
        try:
            found: T = await future
        finally:
            patience.cancel()
        return found

    def write_now(self, change: Callable[[Connection], T]) -> T:
        """Run a change, and wait in the calling thread. Raises as `write` does."""
        try:
            return self.submit(change).result(WRITE_SECONDS)
        except TimeoutError:
            raise OutcomeUnknown(SILENT) from None

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query in a thread. Raises StoreAway, at once while the store is silent."""
        self._require_answers()
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, query)
        except TimeoutError:
            raise StoreAway(SILENT) from None

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """Run a query in the calling thread, in one transaction. Raises StoreAway.

        A query whose connection was lost runs once more, since a restart of the database ends all connections.
        """
        try:
            return self._read(query)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise _away(error) from None
        except SQLAlchemyError as error:
            raise _away(error) from None
        try:
            return self._read(query)
        except SQLAlchemyError as error:
            raise _away(error) from None

    def close(self) -> None:
        """Write the queued changes, then close all connections."""
        self._writer.close()
        self._readers.shutdown()
        self._engine.dispose()

    def problem(self, now: float) -> str | None:
        """Return the reason why changes are not written; None if they are. `now` is the monotonic time."""
        since = self._writer.busy_since
        return SILENT if since is not None and now - since > SILENT_SECONDS else self._writer.problem

    def _require_answers(self) -> None:
        if self.silent:
            raise StoreAway(SILENT)

    def _read(self, query: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            return query(connection)


def _give_up(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(OutcomeUnknown(SILENT))


def _away(error: SQLAlchemyError) -> Exception:
    """Return StoreAway for an error of the database's own state; return any other error as it is."""
    if isinstance(error, DBAPIError) and not is_passing(error):
        return error
    return StoreAway(f"the store does not answer: {cause_of(error)}")
