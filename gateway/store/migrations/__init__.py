"""Revisions of the store's schema, run by Alembic. `gateway.store.schema` calls the revisions; there is no ini file."""
