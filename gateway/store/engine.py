"""Connections to SQLite and PostgreSQL, so that both behave alike: one writer at a time, and readers beside it.

SQLite has one writer at a time by itself (`BEGIN IMMEDIATE`). On PostgreSQL a write transaction first takes an advisory
lock, and holds the lock until the transaction ends. So transactions of several gateways become visible in the order in
which they took numbers from a sequence: without the lock, a reader could see number 7 before number 6. The lock also
keeps other changes from happening between a change's reads and its writes.

A `Hold` keeps this process from adding to the outbox until the next row's number is known, and while it is full.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gateway.errors import StoreAway
from gateway.store.dialects import storable_json

POOL = 16
MOVED = "the database was started again or replaced, and Kafka has not yet shown which accepted records it has"
_WRITES, _HOLD, _FRESH = "postback_writes", "postback_hold", "postback_fresh"
_LOCK = 0x706F7374
"""The advisory lock's number: any constant that all gateways share."""

Fresh = list[dict[str, Any]]
"""New rows of the outbox, with their numbers, in the order of the numbers."""

_POSTGRES = {
    "client_encoding": "utf8",  # takes precedence over PGCLIENTENCODING in the environment
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    # Otherwise a gateway that hangs in a write transaction would keep the lock, and block all other gateways for ever.
    "options": "-c idle_in_transaction_session_timeout=10s -c lock_timeout=20s -c statement_timeout=120s",
}


def open_engine(url: str) -> Engine:
    """Return an engine for the URL; no connection is made yet. Raises StoreAway.

    A connection to a database whose encoding is not UTF8 raises StoreAway.
    """
    try:
        parsed = make_url(url)
        engine = create_engine(
            parsed, pool_size=POOL, pool_timeout=10, json_serializer=storable_json, connect_args=_arguments(parsed)
        )
    except (ArgumentError, ImportError, ValueError) as error:
        raise StoreAway(
            f"the store's URL cannot be used ({type(error).__name__}); write sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME into POSTBACK_STORE__URL"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        # The check runs before SQLAlchemy's own first queries, because psycopg answers those in bytes if the encoding
        # is SQL_ASCII.
        event.listen(engine, "connect", _require_utf8, insert=True)
    return engine


def writing(engine: Engine, hold: Hold | None = None, fresh: Fresh | None = None) -> Engine:
    """Return an engine on the same pool for write transactions.

    While `hold` is set, these transactions cannot add to the outbox. They note in `fresh` the rows that they add.
    """
    return engine.execution_options(**{_WRITES: True, _HOLD: hold, _FRESH: [] if fresh is None else fresh})


def fresh_rows(connection: Connection) -> Fresh:
    """Return the rows that the present write transaction has added to the outbox."""
    found: Fresh = connection.get_execution_options()[_FRESH]
    return found


def take_turn(connection: Connection) -> None:
    """On PostgreSQL, wait for this transaction's turn to write; SQLite waits when the transaction begins."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def is_passing(error: DBAPIError) -> bool:
    """True if the database's state, such as a lost connection, caused the error, and not the statement."""
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


_SQLITE_CAUSES = {
    5: "another process writes to it for too long",
    8: "it is read-only",
    10: "its disk fails",
    11: "its file is damaged",
    13: "its disk is full",
    14: "its file cannot be opened",
    26: "its file is no database",
}
"""Causes by SQLite's primary result codes (sqlite.org/rescode.html)."""
_POSTGRES_CAUSES = {
    "25006": "it is read-only, as a standby is",
    "28": "it refuses the user or the password",
    "3D000": "it has no database of this name",
    "42501": "its user lacks a permission",
    "53100": "its disk is full",
    "53300": "it has too many connections",
    "53": "it lacks memory or another resource",
    "55P03": "another process writes to it for too long",
    "57014": "a statement took too long",
    "57": "it is stopping or starting",
    "58": "its disk fails",
}
"""Causes by PostgreSQL's SQLSTATE, or by its first two characters (PostgreSQL's manual, appendix A)."""


def cause_of(error: SQLAlchemyError) -> str:
    """Return the cause of a failure as a phrase with "it" for the database. It repeats no statement and no value."""
    original = error.orig if isinstance(error, DBAPIError) else None
    code: int | None = getattr(original, "sqlite_errorcode", None)
    state: str | None = getattr(original, "sqlstate", None)
    if isinstance(error, PoolTimeout):
        return "all of its connections are in use"
    if code is not None:
        return _SQLITE_CAUSES.get(code & 0xFF, f"SQLite's error {code}")
    if state is not None:
        return _POSTGRES_CAUSES.get(state) or _POSTGRES_CAUSES.get(state[:2]) or f"PostgreSQL's error {state}"
    return "it cannot be reached" if isinstance(error, DBAPIError) else f"an unexpected {type(error).__name__}"


def _arguments(url: URL) -> dict[str, Any]:
    if url.get_backend_name() != "postgresql":
        return {}
    return {name: value for name, value in _POSTGRES.items() if name not in url.query}


def _require_utf8(connection: Any, _record: object) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise StoreAway(
            f"the store's database has the encoding {encoding}; create one with ENCODING 'UTF8' TEMPLATE template0, "
            "and name it in POSTBACK_STORE__URL"
        )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions, because `_begin_sqlite` does
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction.

    A write transaction locks at once: SQLite may refuse to turn a reader into a writer later.
    """
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@dataclass(slots=True)
class Hold:
    """The reasons why this process may not add to the outbox, as phrases; None for a reason that does not apply."""

    unknown: str | None = None
    """The reason for which no record may enter the outbox."""
    full: str | None = None
    """The reason for which no job may enter the outbox; records about accepted work still may."""
    away: str | None = None
    """The reason why the database takes no change now."""
    watched: bool = False
    """True if `Acceptance` releases the hold. Commands have no `Acceptance`."""
    moves: int = 0
    """The number of times that another database server was seen."""
    _lock: Lock = field(default_factory=Lock)

    @property
    def refusal(self) -> str | None:
        """The reason why no work can be accepted; None if it can."""
        return self.unknown or self.away or self.full

    def move(self) -> None:
        """Hold until the position is known again: another server may lack the last commits of the former one."""
        with self._lock:
            self.moves += 1
            if self.watched:
                self.unknown = MOVED

    def release(self, moves: int) -> None:
        """Note that the position is known to the server of this number of moves."""
        with self._lock:
            if moves == self.moves:
                self.unknown = None


def require_no_hold(connection: Connection, *, new_work: bool) -> None:
    """Raise StoreAway if the outbox is on hold in this process."""
    hold: Hold | None = connection.get_execution_options().get(_HOLD)
    reason = None if hold is None else (hold.unknown or hold.full) if new_work else hold.unknown
    if reason is not None:
        raise StoreAway(reason)
