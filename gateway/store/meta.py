"""Single values of the store, such as its UUID."""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, select

from gateway.store.dialects import insert
from gateway.store.tables import meta

STORE = "store"


def value_of(connection: Connection, name: str) -> str | None:
    """Return a value; None if it was never set."""
    found: str | None = connection.scalar(select(meta.c.value).where(meta.c.name == name))
    return found


def set_value(connection: Connection, name: str, value: str) -> None:
    """Set a value."""
    connection.execute(
        insert(connection, meta).on_conflict_do_update(index_elements=["name"], set_={"value": value}),
        {"name": name, "value": value},
    )


def store_id(connection: Connection) -> str:
    """Return the store's UUID, which every copy of the store has; make it in a new store, in a write transaction."""
    found = value_of(connection, STORE)
    if found is None:
        found = uuid.uuid4().hex
        set_value(connection, STORE, found)
    return found
