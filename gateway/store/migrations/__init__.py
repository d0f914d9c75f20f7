"""Revisions of the store's schema, run by Alembic. `gateway.store.schema` calls them; there is no ini file."""
