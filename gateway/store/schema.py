"""The schema's revision: a new store gets the newest, and a store with another revision is refused.

The revision is read without Alembic, whose import costs a command a fifth of a second of CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, column, inspect, make_url, select, table
from sqlalchemy.exc import SQLAlchemyError

from gateway.store.engine import cause_of, open_engine
from gateway.store.errors import StoreAway
from gateway.store.tables import meta

NEWEST = "0001"
"""The revision of this program: the last one in `gateway/store/migrations/versions`."""

_ALEMBIC = table("alembic_version", column("version_num"))


class OtherSchema(StoreAway):
    """The store's schema is older or newer than this program's."""


def require_current(connection: Connection) -> None:
    """Make the tables of an empty database. Raises OtherSchema if the store has another revision."""
    present = _revision_of(connection)
    if present == NEWEST:
        return
    if present is None and not _has_tables(connection):
        from gateway.store.migrating import create

        create(connection)
        return
    if present is not None and present > NEWEST:
        raise OtherSchema(f"the store's schema {present} is newer than this program; install a newer Postback")
    raise OtherSchema(
        f"the store's schema {present or 'has no number and'} is older than this program; stop the gateways, back the "
        "store up, and run `postback store upgrade`"
    )


def upgrade(connection: Connection) -> tuple[str | None, str]:
    """Bring the schema to the newest revision, in the connection's transaction. Returns the revisions before and after.

    Raises OtherSchema if the store is newer than this program, or if the store has tables but no revision.
    """
    present = _revision_of(connection)
    if (present is None and _has_tables(connection)) or (present is not None and present > NEWEST):
        raise OtherSchema("the store's schema is of another program; check POSTBACK_STORE__URL")
    if present != NEWEST:
        from gateway.store.migrating import run_revisions

        run_revisions(connection)
    return present, NEWEST


@dataclass(frozen=True, slots=True)
class StoreState:
    """A store's schema."""

    revision: str | None
    """The store's revision; None if it has none."""
    newest: str
    """The revision of this program."""
    has_tables: bool
    """True if the database has tables of a Postback store."""


def examine_store(url: str) -> StoreState:
    """Return a store's schema, and change nothing. Raises StoreAway, also if an SQLite file's folder is missing."""
    engine = open_engine(url)
    try:
        if engine.dialect.name == "sqlite":
            file = make_url(url).database
            if file and file != ":memory:" and not Path(file).exists():
                if not Path(file).absolute().parent.is_dir():
                    raise StoreAway("the store's folder is missing; make it, or correct POSTBACK_STORE__URL")
                return StoreState(None, NEWEST, has_tables=False)
        with engine.connect() as connection:
            return StoreState(_revision_of(connection), NEWEST, has_tables=_has_tables(connection))
    except SQLAlchemyError as error:
        raise StoreAway(
            f"the store cannot be opened: {cause_of(error)}; start the database, or correct POSTBACK_STORE__URL"
        ) from None
    finally:
        engine.dispose()


def _revision_of(connection: Connection) -> str | None:
    """Return the store's revision; None if it has none."""
    if not inspect(connection).has_table(_ALEMBIC.name):
        return None
    found: str | None = connection.scalar(select(_ALEMBIC.c.version_num))
    return found


def _has_tables(connection: Connection) -> bool:
    """Return whether the database has tables of a store."""
    return bool(inspect(connection).has_table(meta.name))
