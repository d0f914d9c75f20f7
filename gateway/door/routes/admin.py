"""`/v1/admin/…`: API keys and settings of all tenants, for credentials with the scope `admin`."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.access import Scope
from gateway.access.keys import ApiKey, create_key, listed_keys, revoke_key
from gateway.access.principal import DEFAULT_SCOPES
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import find_tenant, listed_tenants, put_tenant, remove_tenant
from gateway.batches.paging import list_body
from gateway.door import query
from gateway.door.body import json_response, parse_json, read_body
from gateway.door.door import Door
from gateway.door.errors import ApiError, not_found
from gateway.door.noted import note_objects
from schemas.bounded import BoundedModel
from schemas.job import Tenant
from telemetry.clock import Clock, unix_ms

MOST_BODY_BYTES = 1024 * 1024
_YEAR_SECONDS = 366 * 86_400
_MOST = 1000

Model = TypeVar("Model", bound=BaseModel)
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


class AdminRoutes:
    """The handlers of `/v1/admin`."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def create_key(self, request: Request) -> Response:
        """Create a key. The answer has the key itself, which is shown once."""
        door = self._door
        await door.principal(request, Scope.ADMIN)
        asked = _read(KeyRequest, await read_body(request, MOST_BODY_BYTES))
        now_ms = unix_ms(door.clock)
        expires_at = now_ms + asked.expires_in_seconds * 1000 if asked.expires_in_seconds is not None else None
        made = await door.store.write(
            lambda connection: create_key(
                connection, door.access.digests, door.clock, asked.tenant, asked.scopes, asked.label, expires_at
            )
        )
        note_objects(request, [made.id])
        row = ApiKey(made.id, asked.tenant, asked.scopes, asked.label, now_ms, expires_at, None, None)
        return json_response({**_shown(row, door.clock), "key": made.key})

    async def list_keys(self, request: Request) -> Response:
        """Answer with a page of keys, the oldest first."""
        await self._door.principal(request, Scope.ADMIN)
        query.only(request, ("tenant", "limit", "after"))
        limit, said = query.number(request, "limit", 100, 1, _MOST), request.query_params
        rows = await self._door.store.read(
            lambda connection: listed_keys(connection, said.get("tenant"), limit + 1, said.get("after"))
        )
        if rows is None:
            raise not_found("api_key", str(said.get("after")))
        shown = [_shown(row, self._door.clock) for row in rows[:limit]]
        return json_response(list_body(shown, has_more=len(rows) > limit))

    async def revoke_key(self, request: Request) -> Response:
        """Revoke a key for good."""
        door = self._door
        await door.principal(request, Scope.ADMIN)
        identifier = request.path_params["key_id"]
        revoked = await door.store.write(lambda connection: revoke_key(connection, door.clock, identifier))
        if revoked is None:
            raise not_found("api_key", identifier)
        door.access.forget_key(identifier)
        return json_response(_shown(revoked, door.clock))

    async def list_tenants(self, request: Request) -> Response:
        """Answer with a page of the tenants that have settings of their own, sorted by name."""
        await self._door.principal(request, Scope.ADMIN)
        query.only(request, ("limit", "after"))
        limit, after = query.number(request, "limit", 100, 1, _MOST), request.query_params.get("after")
        rows = await self._door.store.read(lambda connection: listed_tenants(connection, limit + 1, after))
        shown = [_tenant(name, settings) for name, settings in rows[:limit]]
        return json_response(list_body(shown, has_more=len(rows) > limit))

    async def get_tenant(self, request: Request) -> Response:
        """Answer with a tenant's settings."""
        await self._door.principal(request, Scope.ADMIN)
        name = _named(request)
        found = await self._door.store.read(lambda connection: find_tenant(connection, name))
        if found is None:
            raise not_found("tenant", name)
        return json_response(_tenant(name, found))

    async def put_tenant(self, request: Request) -> Response:
        """Write a tenant's settings, which replace earlier ones."""
        door = self._door
        await door.principal(request, Scope.ADMIN)
        name = _named(request)
        settings = _read(TenantSettings, await read_body(request, MOST_BODY_BYTES))
        await door.store.write(lambda connection: put_tenant(connection, door.clock, name, settings))
        door.access.forget_tenant(name)
        return json_response(_tenant(name, settings))

    async def delete_tenant(self, request: Request) -> Response:
        """Remove a tenant's settings: the defaults apply. Its keys and jobs stay."""
        door = self._door
        await door.principal(request, Scope.ADMIN)
        name = _named(request)
        if not await door.store.write(lambda connection: remove_tenant(connection, name)):
            raise not_found("tenant", name)
        door.access.forget_tenant(name)
        return json_response({"id": name, "object": "tenant", "deleted": True})


def _named(request: Request) -> str:
    """Return the tenant in the path. Raises ApiError (400)."""
    try:
        return _TENANT.validate_python(request.path_params["tenant"])
    except ValidationError:
        reason = "The tenant is not 1 to 63 letters, digits, `_` or `-`, a letter or digit first."
        raise ApiError(400, "invalid_tenant", reason, param="tenant") from None


def _read(kind: type[Model], body: bytes) -> Model:
    """Return the body as this model. Raises ApiError (400), which names the field and repeats no input."""
    document = parse_json(body)
    try:
        return kind.model_validate_json(to_json(document), strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        known = [str(part) for part in first["loc"] if isinstance(part, int) or part in kind.model_fields]
        place, reason = ".".join(known) or None, first["msg"].removeprefix("Value error, ")
        raise ApiError(400, "invalid_value", f"{place or 'The body'}: {reason}.", param=place) from None


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


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of admins."""
    handlers = AdminRoutes(door)
    return [
        Route("/v1/admin/api_keys", handlers.create_key, methods=["POST"]),
        Route("/v1/admin/api_keys", handlers.list_keys, methods=["GET"]),
        Route("/v1/admin/api_keys/{key_id}", handlers.revoke_key, methods=["DELETE"]),
        Route("/v1/admin/tenants", handlers.list_tenants, methods=["GET"]),
        Route("/v1/admin/tenants/{tenant}", handlers.get_tenant, methods=["GET"]),
        Route("/v1/admin/tenants/{tenant}", handlers.put_tenant, methods=["PUT"]),
        Route("/v1/admin/tenants/{tenant}", handlers.delete_tenant, methods=["DELETE"]),
    ]
