"""Alembic's part of the schema. Only a new or an old store needs it, so `gateway.store.schema` imports it late."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gateway.store.schema import NEWEST
from gateway.store.tables import metadata


def create(connection: Connection) -> None:
    """Make the tables of an empty database, with the newest revision."""
    metadata.create_all(connection)
    MigrationContext.configure(connection).stamp(scripts(), NEWEST)


def run_revisions(connection: Connection) -> None:
    """Run the revisions that the store does not have, in the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, NEWEST)


def scripts() -> ScriptDirectory:
    """Return the folder of the revisions."""
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config
