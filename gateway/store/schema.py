"""The schema's number: an empty database gets the newest schema, and a store with another number is refused."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import StoreAway
from gateway.store.engine import cause_of, open_engine
from gateway.store.meta import set_value, value_of
from gateway.store.tables import meta, metadata

UPGRADES: tuple[tuple[str, ...], ...] = ()
"""The statements that bring a store to the next number; the first ones lead from number 1 to 2.

A change of `gateway.store.tables` adds its statements here.
"""
_NUMBER = "schema"


class OtherSchema(StoreAway):
    """The store's schema is older or newer than this program's, or another program's."""


def newest() -> int:
    """Return the number of this program's schema."""
    return 1 + len(UPGRADES)


def require_current(connection: Connection) -> None:
    """Make the tables of an empty database. Raises OtherSchema if the store has another schema."""
    present = _number_of(connection)
    if present is None:
        metadata.create_all(connection)
        set_value(connection, _NUMBER, str(newest()))
    elif present < newest():
        raise OtherSchema(
            f"the store has schema {present}, older than this program's {newest()}; stop the gateways, back the store "
            "up, and run `postback store upgrade`"
        )


def upgrade(connection: Connection) -> tuple[int | None, int]:
    """Bring the schema to the newest number, in the connection's transaction. Returns the numbers before and after.

    The number before is None for an empty database. Raises OtherSchema if the store is newer or of another program.
    """
    present = _number_of(connection)
    if present is not None:
        for statements in UPGRADES[present - 1 :]:
            for statement in statements:
                connection.exec_driver_sql(statement)
        set_value(connection, _NUMBER, str(newest()))
    require_current(connection)
    return present, newest()


def examine_store(url: str) -> None:
    """Check a store's schema, and change nothing. An empty database is right.

    Raises OtherSchema, and StoreAway, also if an SQLite file's folder is missing.
    """
    engine = open_engine(url)
    try:
        file = make_url(url).database if engine.dialect.name == "sqlite" else None
        if file and file != ":memory:" and not Path(file).exists():
            if not Path(file).absolute().parent.is_dir():
                raise StoreAway("the store's folder is missing; make it, or correct POSTBACK_STORE__URL")
            return
        with engine.connect() as connection:
            if _number_of(connection) is not None:
                require_current(connection)
    except SQLAlchemyError as error:
        raise StoreAway(
            f"the store cannot be opened: {cause_of(error)}; start the database, or correct POSTBACK_STORE__URL"
        ) from None
    finally:
        engine.dispose()


def _number_of(connection: Connection) -> int | None:
    """Return the store's number; None for a database without a store's tables. Raises OtherSchema."""
    if not inspect(connection).has_table(meta.name):
        return None
    found = value_of(connection, _NUMBER)
    if found is None:
        raise OtherSchema("the database of POSTBACK_STORE__URL is of another program; correct POSTBACK_STORE__URL")
    if int(found) > newest():
        raise OtherSchema(
            f"the store has schema {found}, newer than this program's {newest()}; install the newer Postback here too"
        )
    return int(found)
