"""Operations of administrators: API keys, and settings of tenants."""

from __future__ import annotations

from gateway.access import Scope
from gateway.door.openapi.operation import Operation, Parameter

_ADMIN = Scope.ADMIN
_PAGE = (
    Parameter("limit", "The maximum number of objects.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    Parameter("after", "The id of the last object of the previous page."),
)
_KEYS, _TENANTS, _TENANT = "/v1/admin/api_keys", "/v1/admin/tenants", "/v1/admin/tenants/{tenant}"

OPERATIONS = (
    Operation(
        "POST",
        _KEYS,
        "createKey",
        "Create an API key; the answer shows it once",
        _ADMIN,
        "KeyObject",
        body="KeyRequest",
    ),
    Operation(
        "GET",
        _KEYS,
        "listKeys",
        "List API keys",
        _ADMIN,
        "KeyList",
        parameters=(Parameter("tenant", "Only keys of this tenant."), *_PAGE),
    ),
    Operation("DELETE", f"{_KEYS}/{{key_id}}", "revokeKey", "Revoke an API key", _ADMIN, "KeyObject"),
    Operation("GET", _TENANTS, "listTenants", "List tenants with settings", _ADMIN, "TenantList", parameters=_PAGE),
    Operation("GET", _TENANT, "getTenant", "Read a tenant's settings", _ADMIN, "TenantObject"),
    Operation("PUT", _TENANT, "putTenant", "Write a tenant's settings", _ADMIN, "TenantObject", body="TenantSettings"),
    Operation("DELETE", _TENANT, "deleteTenant", "Remove a tenant's settings", _ADMIN, "Deleted"),
)
