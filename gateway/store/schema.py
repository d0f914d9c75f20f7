"""The schema's revision: a new store gets the newest, and a store with another revision is refused."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from gateway.store.errors import StoreAway
from gateway.store.tables import meta, metadata


class OtherSchema(StoreAway):
    """The store's schema is older or newer than this program's."""


def require_current(connection: Connection) -> None:
    """Make the tables of an empty database. Raises OtherSchema if the store has another revision."""
    newest, present = newest_revision(), revision_of(connection)
    if present == newest:
        return
    if present is None and not has_tables(connection):
        metadata.create_all(connection)
        MigrationContext.configure(connection).stamp(ScriptDirectory.from_config(_config()), newest)
        return
    if present is not None and present > newest:
        raise OtherSchema(f"the store's schema {present} is newer than this program; install a newer Postback")
    raise OtherSchema(
        f"the store's schema {present or 'has no number and'} is older than this program; stop the gateways, back the "
        "store up, and run `postback store upgrade`"
    )


def upgrade(connection: Connection) -> tuple[str | None, str]:
    """Bring the schema to the newest revision, in the connection's transaction. Returns the revisions before and after.

    Raises OtherSchema if the store is newer than this program, or has tables of no revision.
    """
    newest, present = newest_revision(), revision_of(connection)
    if (present is None and has_tables(connection)) or (present is not None and present > newest):
        raise OtherSchema("the store's schema is of another program; check POSTBACK_STORE__URL")
    if present != newest:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, newest)
    return present, newest


def revision_of(connection: Connection) -> str | None:
    """Return the store's revision; None if it has none."""
    return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Return the revision of this program."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    assert newest is not None  # noqa: S101 - the folder has revisions
    return newest


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


def has_tables(connection: Connection) -> bool:
    """Return whether the database has tables of a store."""
    return bool(inspect(connection).has_table(meta.name))
