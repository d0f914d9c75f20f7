"""Revisions of the store's schema, run by Alembic for `gateway.store.migrating`; there is no ini file."""
