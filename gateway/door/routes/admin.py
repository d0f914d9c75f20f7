"""`/v1/admin/…`: API keys and settings of all tenants, for credentials with the scope `admin`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from gateway.access import Scope, keys, tenants
from gateway.access.keys import ApiKey
from gateway.access.principal import DEFAULT_SCOPES
from gateway.access.tenant_settings import TenantSettings
from gateway.door import query
from gateway.door.endpoint import Answer, Call
from gateway.door.noted import note_objects
from gateway.errors import ApiError, not_found
from gateway.paging import list_body
from schemas.bounded import BoundedModel
from schemas.job import Tenant
from telemetry.clock import Clock, unix_ms

_YEAR_SECONDS = 366 * 86_400
_MOST = 1000

_TENANT: TypeAdapter[str] = TypeAdapter(Tenant)


class KeyRequest(BoundedModel):
    """The body of a new key."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tenant: Tenant
    """The tenant whose work the key submits and reads."""
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = DEFAULT_SCOPES
    """The key's scopes; by default everything within the key's tenant."""
    label: Annotated[str, Field(max_length=256)] | None = None
    """A name for people."""
    expires_in_seconds: Annotated[int, Field(ge=1, le=_YEAR_SECONDS)] | None = None
    """Seconds for which the key is valid; by default without end."""


async def create_key(call: Call) -> Answer:
    """Create an API key; the answer shows it once."""
    door = call.door
    asked: KeyRequest = await call.body()
    now_ms = unix_ms(door.clock)
    expires_at = now_ms + asked.expires_in_seconds * 1000 if asked.expires_in_seconds is not None else None
    made = await door.store.write(
        lambda connection: keys.create_key(
            connection, door.access.digests, door.clock, asked.tenant, asked.scopes, asked.label, expires_at
        )
    )
    note_objects(call.request, [made.id])
    row = ApiKey(made.id, asked.tenant, asked.scopes, asked.label, now_ms, expires_at, None, None)
    return {**_shown(row, door.clock), "key": made.key}


async def list_keys(call: Call) -> Answer:
    """List API keys, the oldest first."""
    limit, said = query.number(call.request, "limit", 100, 1, _MOST), call.request.query_params
    rows = await call.door.store.read(
        lambda connection: keys.listed_keys(connection, said.get("tenant"), limit + 1, said.get("after"))
    )
    if rows is None:
        raise not_found("api_key", str(said.get("after")))
    shown = [_shown(row, call.door.clock) for row in rows[:limit]]
    return list_body(shown, has_more=len(rows) > limit)


async def revoke_key(call: Call) -> Answer:
    """Revoke an API key."""
    door = call.door
    identifier = call.in_path("key_id")
    revoked = await door.store.write(lambda connection: keys.revoke_key(connection, door.clock, identifier))
    if revoked is None:
        raise not_found("api_key", identifier)
    door.access.forget_key(identifier)
    return _shown(revoked, door.clock)


async def list_tenants(call: Call) -> Answer:
    """List tenants with settings, sorted by name."""
    limit, after = query.number(call.request, "limit", 100, 1, _MOST), call.request.query_params.get("after")
    rows = await call.door.store.read(lambda connection: tenants.listed_tenants(connection, limit + 1, after))
    shown = [_tenant(name, settings) for name, settings in rows[:limit]]
    return list_body(shown, has_more=len(rows) > limit)


async def get_tenant(call: Call) -> Answer:
    """Read a tenant's settings."""
    name = _named(call)
    found = await call.door.store.read(lambda connection: tenants.find_tenant(connection, name))
    if found is None:
        raise not_found("tenant", name)
    return _tenant(name, found)


async def put_tenant(call: Call) -> Answer:
    """Write a tenant's settings, which replace earlier ones."""
    door = call.door
    name = _named(call)
    settings: TenantSettings = await call.body()
    await door.store.write(lambda connection: tenants.put_tenant(connection, door.clock, name, settings))
    door.access.forget_tenant(name)
    return _tenant(name, settings)


async def delete_tenant(call: Call) -> Answer:
    """Remove a tenant's settings: the defaults apply. Its keys and jobs stay."""
    door = call.door
    name = _named(call)
    if not await door.store.write(lambda connection: tenants.remove_tenant(connection, name)):
        raise not_found("tenant", name)
    door.access.forget_tenant(name)
    return {"id": name, "object": "tenant", "deleted": True}


def _named(call: Call) -> str:
    """Return the tenant in the path. Raises ApiError (400)."""
    try:
        return _TENANT.validate_python(call.in_path("tenant"))
    except ValidationError:
        reason = "The tenant is not 1 to 63 letters, digits, `_` or `-`, a letter or digit first."
        raise ApiError(400, "invalid_tenant", reason, param="tenant") from None


def _shown(row: ApiKey, clock: Clock) -> dict[str, Any]:
    """Return a key as the API shows it. Times are Unix seconds."""
    times = {
        name: value // 1000 if (value := getattr(row, name)) is not None else None
        for name in ("created_at", "expires_at", "revoked_at", "last_used_at")
    }
    said = {"tenant": row.tenant, "scopes": sorted(row.scopes), "label": row.label}
    return {"id": row.id, "object": "api_key", "status": row.state(clock.time() * 1000), **said, **times}


def _tenant(name: str, settings: TenantSettings) -> dict[str, Any]:
    return {"id": name, "object": "tenant", "settings": settings.model_dump()}
