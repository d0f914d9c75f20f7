"""Operations on webhook endpoints."""

from __future__ import annotations

from gateway.access import Scope
from gateway.door.openapi.operation import PAGING, Operation

_ONE = "/v1/webhook_endpoints/{webhook_endpoint_id}"

OPERATIONS = (
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
    Operation("GET", _ONE, "getWebhookEndpoint", "Read a webhook endpoint", Scope.READ, "WebhookEndpoint"),
    Operation(
        "POST",
        _ONE,
        "updateWebhookEndpoint",
        "Change a webhook endpoint",
        Scope.WEBHOOKS,
        "WebhookEndpoint",
        about="Members that the body leaves out stay as they are.",
        body="WebhookEndpointChange",
    ),
    Operation("DELETE", _ONE, "deleteWebhookEndpoint", "Delete a webhook endpoint", Scope.WEBHOOKS, "Deleted"),
    Operation(
        "POST",
        f"{_ONE}/rotate_secret",
        "rotateWebhookSecret",
        "Begin a new signing secret",
        Scope.WEBHOOKS,
        "WebhookEndpointWithSecret",
        body="WebhookRotation",
    ),
    Operation(
        "POST",
        f"{_ONE}/test",
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
