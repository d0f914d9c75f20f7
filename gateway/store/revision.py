"""The revision of a store's schema, read without Alembic, whose import costs a command a fifth of a second of CPU."""

from __future__ import annotations

from sqlalchemy import Connection, column, inspect, select, table

from gateway.store.tables import meta

NEWEST = "0001"
"""The revision of this program: the last one in `gateway/store/migrations/versions`."""

_ALEMBIC = table("alembic_version", column("version_num"))


def revision_of(connection: Connection) -> str | None:
    """Return the store's revision; None if it has none."""
    if not inspect(connection).has_table(_ALEMBIC.name):
        return None
    found: str | None = connection.scalar(select(_ALEMBIC.c.version_num))
    return found


def has_tables(connection: Connection) -> bool:
    """Return whether the database has tables of a store."""
    return bool(inspect(connection).has_table(meta.name))
