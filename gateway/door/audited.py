"""Audit lines of requests: one for each request that has a credential, or is refused with 401 or 403."""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Scope

from gateway.access import Principal
from gateway.door.door import PRINCIPAL
from gateway.door.noted import ACTION, CREDENTIAL, HASHES, OBJECTS, REASON, RULES, VERDICT
from gateway.door.openapi.document import OPERATIONS
from telemetry.audit import AuditEvent, Type

_NAMES: Final = {(operation.method, operation.path): operation.name for operation in OPERATIONS}
_DENIED = (401, 403)


def audit_event(scope: Scope, status: int) -> AuditEvent | None:
    """Return the audit event of an answered request; None for a page without a credential, such as `/docs`."""
    state, route = scope["state"], getattr(scope.get("route"), "path", None)
    principal: Principal | None = state.get(PRINCIPAL)
    action = state.get(ACTION) or _NAMES.get((scope["method"], (route or "").replace(":path}", "}")))
    if action is None or (principal is None and status not in _DENIED):
        return None
    known = [str(value) for value in scope.get("path_params", {}).values()]
    client: Any = scope.get("client")
    return AuditEvent(
        action=action,
        type=_type(scope["method"], action, status),
        succeeded=status < 400,
        user=state.get(CREDENTIAL) if principal is None else principal.credential,
        tenant=None if principal is None else principal.tenant,
        objects=[*known, *state.get(OBJECTS, ())],
        hashes=state.get(HASHES, ()),
        verdict=state.get(VERDICT),
        rules=state.get(RULES, ()),
        reason=state.get(REASON),
        status=status,
        request_id=state.get("request_id"),
        address=client[0] if client else None,
    )


def _type(method: str, action: str, status: int) -> Type:
    if status in _DENIED:
        return "denied"
    if method == "GET":
        return "access"
    if method == "DELETE":
        return "deletion"
    return "creation" if action.startswith("create") else "change"
