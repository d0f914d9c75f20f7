"""Examines a store for `postback doctor`, and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from gateway.store.engine import cause_of, open_engine
from gateway.store.errors import StoreAway
from gateway.store.revision import NEWEST, has_tables, revision_of


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
            return StoreState(revision_of(connection), NEWEST, has_tables=has_tables(connection))
    except SQLAlchemyError as error:
        raise StoreAway(
            f"the store cannot be opened: {cause_of(error)}; start the database, or correct POSTBACK_STORE__URL"
        ) from None
    finally:
        engine.dispose()
