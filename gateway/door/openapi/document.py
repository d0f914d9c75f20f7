"""The whole OpenAPI document, version 3.1, with the operations on webhook endpoints and those of administrators."""

from __future__ import annotations

import re
from typing import Any

from gateway.access import Scope
from gateway.door.openapi import files, jobs
from gateway.door.openapi.operation import PAGING, Operation, Parameter
from gateway.door.openapi.schemas import ref, schemas

_ENDPOINT = "/v1/webhook_endpoints/{webhook_endpoint_id}"
_WEBHOOK_OPERATIONS = (
    Operation(
        "POST",
        "/v1/webhook_endpoints",
        "createWebhookEndpoint",
        "Register a URL for events",
        Scope.WEBHOOKS,
        "WebhookEndpointWithSecret",
        about="The answer shows the endpoint's signing secret, once.",
        body="WebhookEndpointRequest",
    ),
    Operation(
        "GET",
        "/v1/webhook_endpoints",
        "listWebhookEndpoints",
        "List webhook endpoints",
        Scope.READ,
        "WebhookEndpointList",
        parameters=PAGING[:2],
    ),
    Operation("GET", _ENDPOINT, "getWebhookEndpoint", "Read a webhook endpoint", Scope.READ, "WebhookEndpoint"),
    Operation(
        "POST",
        _ENDPOINT,
        "updateWebhookEndpoint",
        "Change a webhook endpoint",
        Scope.WEBHOOKS,
        "WebhookEndpoint",
        about="Members that the body leaves out stay as they are.",
        body="WebhookEndpointChange",
    ),
    Operation("DELETE", _ENDPOINT, "deleteWebhookEndpoint", "Delete a webhook endpoint", Scope.WEBHOOKS, "Deleted"),
    Operation(
        "POST",
        f"{_ENDPOINT}/rotate_secret",
        "rotateWebhookSecret",
        "Begin a new signing secret",
        Scope.WEBHOOKS,
        "WebhookEndpointWithSecret",
        body="WebhookRotation",
    ),
    Operation(
        "POST",
        f"{_ENDPOINT}/test",
        "testWebhookEndpoint",
        "Send a sample event at once",
        Scope.WEBHOOKS,
        "WebhookTest",
        about="409 if the endpoint gives no HTTP answer.",
        body="WebhookTestRequest",
    ),
    Operation(
        "GET",
        "/v1/webhook_event_types",
        "listWebhookEventTypes",
        "List the types of events",
        Scope.READ,
        "EventTypeList",
    ),
)
_KEYS, _TENANTS, _TENANT = "/v1/admin/api_keys", "/v1/admin/tenants", "/v1/admin/tenants/{tenant}"
_LONG_PAGES = (
    Parameter("limit", "The maximum number of objects.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    PAGING[1],
)
_ADMIN_OPERATIONS = (
    Operation(
        "POST",
        _KEYS,
        "createKey",
        "Create an API key; the answer shows it once",
        Scope.ADMIN,
        "KeyObject",
        body="KeyRequest",
    ),
    Operation(
        "GET",
        _KEYS,
        "listKeys",
        "List API keys",
        Scope.ADMIN,
        "KeyList",
        parameters=(Parameter("tenant", "Only keys of this tenant."), *_LONG_PAGES),
    ),
    Operation("DELETE", f"{_KEYS}/{{key_id}}", "revokeKey", "Revoke an API key", Scope.ADMIN, "KeyObject"),
    Operation(
        "GET", _TENANTS, "listTenants", "List tenants with settings", Scope.ADMIN, "TenantList", parameters=_LONG_PAGES
    ),
    Operation("GET", _TENANT, "getTenant", "Read a tenant's settings", Scope.ADMIN, "TenantObject"),
    Operation(
        "PUT", _TENANT, "putTenant", "Write a tenant's settings", Scope.ADMIN, "TenantObject", body="TenantSettings"
    ),
    Operation("DELETE", _TENANT, "deleteTenant", "Remove a tenant's settings", Scope.ADMIN, "Deleted"),
)
OPERATIONS: tuple[Operation, ...] = (
    *jobs.OPERATIONS,
    *files.OPERATIONS,
    *_WEBHOOK_OPERATIONS,
    *_ADMIN_OPERATIONS,
)
_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_ABOUT = (
    "Asynchronous inference: submit jobs, read their answers, or receive them as signed callbacks. "
    "Paths and bodies of OpenAI's API work with OpenAI's clients; set their base URL to this server's `/v1`."
)


def openapi_document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Postback", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key (`pk_…`), or a token."}
            },
            "responses": {
                "Error": {
                    "description": "A refusal. Every status from 400 on has this shape.",
                    "content": {"application/json": {"schema": ref("Error")}},
                }
            },
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "string"} if operation.answer is None else ref(operation.answer)
    described = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"{operation.about} Needs the scope `{operation.scope}`.".strip(),
        "parameters": [*map(_in_path, _PARAMETER.findall(operation.path)), *map(_parameter, operation.parameters)],
        "responses": {
            str(operation.status): {
                "description": "Done." if operation.status == 200 else "Accepted.",
                "content": {operation.answer_type: {"schema": answer}},
            },
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {operation.body_type: {"schema": ref(operation.body)}},
        }
    return described


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "description": parameter.meaning,
        "schema": dict(parameter.schema),
    }
