"""Alembic runs this file with the connection that `gateway.store.migrating` gives it, inside a transaction."""

from alembic import context

from gateway.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
