"""The schema's revision: a new store gets the newest, and a store with another revision is refused."""

from __future__ import annotations

from sqlalchemy import Connection

from gateway.store.errors import StoreAway
from gateway.store.revision import NEWEST, has_tables, revision_of


class OtherSchema(StoreAway):
    """The store's schema is older or newer than this program's."""


def require_current(connection: Connection) -> None:
    """Make the tables of an empty database. Raises OtherSchema if the store has another revision."""
    present = revision_of(connection)
    if present == NEWEST:
        return
    if present is None and not has_tables(connection):
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
    present = revision_of(connection)
    if (present is None and has_tables(connection)) or (present is not None and present > NEWEST):
        raise OtherSchema("the store's schema is of another program; check POSTBACK_STORE__URL")
    if present != NEWEST:
        from gateway.store.migrating import run_revisions

        run_revisions(connection)
    return present, NEWEST
