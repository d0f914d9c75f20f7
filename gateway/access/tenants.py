"""Settings of tenants in the store."""

from __future__ import annotations

from pydantic import ValidationError
from sqlalchemy import Connection, select

from gateway.access.tenant_settings import TenantSettings
from gateway.store.dialects import insert
from gateway.store.tables import tenants
from telemetry.clock import Clock, unix_ms


def find_tenant(connection: Connection, tenant: str) -> TenantSettings | None:
    """Return the tenant's own settings; None if the tenant has no settings of its own."""
    found = connection.execute(select(tenants.c.settings).where(tenants.c.tenant == tenant)).scalar()
    return _read(found) if found is not None else None


def put_tenant(connection: Connection, clock: Clock, tenant: str, settings: TenantSettings) -> None:
    """Write the tenant's settings, which replace earlier ones."""
    stored = settings.model_dump(exclude_none=True)
    row = {"tenant": tenant, "settings": stored, "created_at": unix_ms(clock)}
    connection.execute(
        insert(connection, tenants).on_conflict_do_update(index_elements=["tenant"], set_={"settings": stored}), row
    )


def remove_tenant(connection: Connection, tenant: str) -> bool:
    """Remove the tenant's settings, so that the defaults apply; its keys and jobs stay. False if it has none."""
    return connection.execute(tenants.delete().where(tenants.c.tenant == tenant)).rowcount == 1


def listed_tenants(
    connection: Connection, limit: int = 1000, after: str | None = None
) -> list[tuple[str, TenantSettings]]:
    """Return the tenants that have settings of their own, sorted by name."""
    query = select(tenants.c.tenant, tenants.c.settings).order_by(tenants.c.tenant).limit(limit)
    if after is not None:
        query = query.where(tenants.c.tenant > after)
    return [(row.tenant, _read(row.settings)) for row in connection.execute(query)]


def _read(stored: object) -> TenantSettings:
    """Return stored settings. If they have an unknown field of a later version, allow no model and no callback."""
    try:
        return TenantSettings.model_validate(stored)
    except ValidationError:
        return TenantSettings(models=[], callback_domains=[])
