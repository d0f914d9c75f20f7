"""The API: one row per endpoint. The rows drive routing, admission, bodies, the audit and the OpenAPI document.

The most frequent endpoints come first, because a request is compared with one route after another. Of two paths that
match the same request, the longer one comes first.
"""

from __future__ import annotations

from typing import get_args

from gateway.access import Scope
from gateway.access.tenant_settings import TenantSettings
from gateway.door.endpoint import IDEMPOTENCY, PAGING, Body, Endpoint, Parameter
from gateway.door.routes import admin, batches, completions, events, files, jobs, models, responses
from gateway.door.routes import webhook_endpoints as hooks
from schemas.kind_bodies import ENDPOINTS
from schemas.topics import Lane

_SMALL = 64 * 1024
_ADMIN_BYTES = 1024 * 1024
_FORM = "multipart/form-data"
_LANE = {"enum": list(get_args(Lane))}
_AWAITED = (
    "The request waits for the answer. When its time is over, the job is cancelled and the status is 504. "
    "A job that did not succeed is an error with its code. When the gateway stops, the status is 503: "
    "a repeat with the same `Idempotency-Key` gets the answer of the same job."
)
_LONG_PAGES = (
    Parameter("limit", "The maximum number of objects.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    PAGING[1],
)

_JOBS = (
    Endpoint(
        "POST",
        "/v1/jobs",
        jobs.create,
        "createJobs",
        Scope.SUBMIT,
        "AcceptedJobs",
        "Submit one job, or an array of jobs",
        body=Body("JobOrJobs"),
        status=202,
        about="An array is accepted whole or not at all. Unknown fields are refused, and a problem names its job's "
        "index.",
        parameters=(
            IDEMPOTENCY,
            Parameter("lane", "`bulk` jobs wait behind `default` ones; `spare` jobs run while no other waits.", _LANE),
            Parameter("x-postback-lane", "The lane, if the query names none.", _LANE, "header"),
        ),
    ),
    Endpoint(
        "GET",
        "/v1/jobs",
        jobs.several,
        "listJobs",
        Scope.READ,
        "JobList",
        "List jobs, without their results",
        about="`metadata.KEY=VALUE` chooses jobs with this metadata; up to eight keys may be given.",
        parameters=jobs.FILTERS,
        prefix=jobs.METADATA,
    ),
    Endpoint(
        "GET",
        "/v1/jobs/{job_id:path}",
        jobs.retrieve,
        "getJob",
        Scope.READ,
        "JobWithResult",
        "Read a job with its result",
    ),
    Endpoint(
        "POST",
        "/v1/jobs/{job_id:path}/cancel",
        jobs.cancel,
        "cancelJob",
        Scope.CANCEL,
        "JobObject",
        "Cancel a job",
        about="A job that has ended is a 409. A result that is older than the cancellation remains.",
    ),
)
_RESPONSE = "/v1/responses/{response_id:path}"
_RESPONSES = (
    Endpoint(
        "POST",
        "/v1/responses",
        responses.create,
        "createResponse",
        Scope.SUBMIT,
        "ResponseObject",
        "Create a response",
        body=Body("ResponseRequest"),
        about=f"With `background` the answer comes at once, as `queued`. Without `background`: {_AWAITED}",
        parameters=(IDEMPOTENCY,),
    ),
    Endpoint(
        "POST",
        f"{_RESPONSE}/cancel",
        responses.cancel,
        "cancelResponse",
        Scope.CANCEL,
        "ResponseObject",
        "Cancel a response",
        about="A response whose end is not known yet is `in_progress`, and `postback.status` is `cancelling`.",
    ),
    Endpoint(
        "GET",
        f"{_RESPONSE}/input_items",
        responses.list_input_items,
        "listInputItems",
        Scope.READ,
        "ItemList",
        "List a response's input",
        parameters=PAGING,
        ignores_unknown=True,
    ),
    Endpoint("GET", _RESPONSE, responses.retrieve, "getResponse", Scope.READ, "ResponseObject", "Read a response"),
    Endpoint(
        "DELETE",
        _RESPONSE,
        responses.delete,
        "deleteResponse",
        Scope.CANCEL,
        "Deleted",
        "Delete a finished response with its answer and input",
    ),
)
_COMPLETIONS = tuple(
    Endpoint(
        "POST",
        url,
        completions.create,
        f"create{name}",
        Scope.SUBMIT,
        answer,
        summary,
        body=Body(request),
        about=_AWAITED,
        parameters=(IDEMPOTENCY,),
    )
    for url, name, summary, request, answer in (
        ("/v1/chat/completions", "ChatCompletion", "Answer a chat", "ChatRequest", "ChatCompletion"),
        ("/v1/completions", "Completion", "Continue a text", "CompletionRequest", "TextCompletion"),
        *((one.url, one.name, one.title, f"{one.name}Request", f"{one.name}Answer") for one in ENDPOINTS.values()),
    )
)
_BATCHES = (
    Endpoint(
        "POST",
        "/v1/batches",
        batches.create,
        "createBatch",
        Scope.SUBMIT,
        "BatchObject",
        "Create a batch from an uploaded file",
        body=Body("BatchRequest", _SMALL),
        parameters=(IDEMPOTENCY,),
    ),
    Endpoint(
        "GET",
        "/v1/batches",
        batches.list_batches,
        "listBatches",
        Scope.READ,
        "BatchList",
        "List batches",
        parameters=PAGING,
    ),
    Endpoint("GET", "/v1/batches/{batch_id}", batches.retrieve, "getBatch", Scope.READ, "BatchObject", "Read a batch"),
    Endpoint(
        "POST",
        "/v1/batches/{batch_id}/cancel",
        batches.cancel,
        "cancelBatch",
        Scope.CANCEL,
        "BatchObject",
        "Cancel a batch",
    ),
)
_FILES = (
    Endpoint(
        "POST",
        "/v1/files",
        files.upload,
        "createFile",
        Scope.SUBMIT,
        "FileObject",
        "Upload a file",
        body=Body("FileForm", media_type=_FORM),
        parameters=(IDEMPOTENCY,),
    ),
    Endpoint(
        "GET",
        "/v1/files",
        files.list_files,
        "listFiles",
        Scope.READ,
        "FileList",
        "List files",
        parameters=(
            Parameter("limit", "The maximum number of files.", {"type": "integer", "minimum": 1, "maximum": 10_000}),
            *PAGING[1:],
            Parameter("purpose", "Only files with this purpose."),
        ),
    ),
    Endpoint(
        "GET", "/v1/files/{file_id}", files.retrieve, "getFile", Scope.READ, "FileObject", "Read a file's description"
    ),
    Endpoint("DELETE", "/v1/files/{file_id}", files.delete, "deleteFile", Scope.CANCEL, "Deleted", "Delete a file"),
    Endpoint(
        "GET",
        "/v1/files/{file_id}/content",
        files.content,
        "getFileContent",
        Scope.READ,
        None,
        "Download a file",
        answer_type="application/octet-stream",
        parameters=(Parameter("Range", "The bytes to send, such as `bytes=0-1023`.", place="header"),),
    ),
)
_UPLOADS = (
    Endpoint(
        "POST",
        "/v1/uploads",
        files.create_upload,
        "createUpload",
        Scope.SUBMIT,
        "UploadObject",
        "Begin a file that arrives in parts",
        body=Body("UploadRequest", _SMALL),
        about="It expires after an hour.",
    ),
    Endpoint(
        "POST",
        "/v1/uploads/{upload_id}/parts",
        files.add_part,
        "createUploadPart",
        Scope.SUBMIT,
        "UploadPart",
        "Upload a part",
        body=Body("PartForm", media_type=_FORM),
        about="A part has 64 MiB at most; parts may arrive at the same time and in any order.",
    ),
    Endpoint(
        "POST",
        "/v1/uploads/{upload_id}/complete",
        files.complete_upload,
        "completeUpload",
        Scope.SUBMIT,
        "UploadObject",
        "Join the parts to a file",
        body=Body("UploadCompletion", _SMALL),
        about="A repeat with the same parts gets the same file.",
    ),
    Endpoint(
        "POST",
        "/v1/uploads/{upload_id}/cancel",
        files.cancel_upload,
        "cancelUpload",
        Scope.CANCEL,
        "UploadObject",
        "Cancel an upload",
    ),
)
_EVENTS = (
    Endpoint(
        "GET",
        "/v1/events",
        events.stream,
        "streamEvents",
        Scope.READ,
        None,
        "Stream the tenant's events",
        answer_type="text/event-stream",
        about="Server-sent events. `id` is the event's number, `data` is the body of the webhook.",
        parameters=(
            Parameter("after", "Begin after this event; 0 begins with the oldest one.", {"type": "integer"}),
            Parameter("types", "Only these types, separated by commas; `batch.*` means all below `batch.`."),
            Parameter("Last-Event-ID", "As `after`, sent by browsers that connect again.", place="header"),
        ),
    ),
)
_MODELS = (
    Endpoint(
        "GET", "/v1/models", models.list_models, "listModels", Scope.READ, "ModelList", "List the tenant's models"
    ),
    Endpoint(
        "GET", "/v1/models/{model:path}", models.retrieve, "getModel", Scope.READ, "ModelObject", "Read one model"
    ),
)
_HOOKS, _HOOK = "/v1/webhook_endpoints", "/v1/webhook_endpoints/{webhook_endpoint_id}"
_WEBHOOKS = (
    Endpoint(
        "GET",
        "/v1/webhook_event_types",
        hooks.event_types,
        "listWebhookEventTypes",
        Scope.READ,
        "EventTypeList",
        "List the types of events",
    ),
    Endpoint(
        "POST",
        _HOOKS,
        hooks.create,
        "createWebhookEndpoint",
        Scope.WEBHOOKS,
        "WebhookEndpointWithSecret",
        "Register a URL for events",
        body=Body("WebhookEndpointRequest", _SMALL),
        about="The answer shows the endpoint's signing secret, once.",
    ),
    Endpoint(
        "GET",
        _HOOKS,
        hooks.list_endpoints,
        "listWebhookEndpoints",
        Scope.READ,
        "WebhookEndpointList",
        "List webhook endpoints",
        parameters=PAGING[:2],
    ),
    Endpoint(
        "GET", _HOOK, hooks.retrieve, "getWebhookEndpoint", Scope.READ, "WebhookEndpoint", "Read a webhook endpoint"
    ),
    Endpoint(
        "POST",
        _HOOK,
        hooks.update,
        "updateWebhookEndpoint",
        Scope.WEBHOOKS,
        "WebhookEndpoint",
        "Change a webhook endpoint",
        body=Body("WebhookEndpointChange", _SMALL),
        about="Members that the body leaves out stay as they are.",
    ),
    Endpoint(
        "DELETE", _HOOK, hooks.delete, "deleteWebhookEndpoint", Scope.WEBHOOKS, "Deleted", "Delete a webhook endpoint"
    ),
    Endpoint(
        "POST",
        f"{_HOOK}/rotate_secret",
        hooks.rotate,
        "rotateWebhookSecret",
        Scope.WEBHOOKS,
        "WebhookEndpointWithSecret",
        "Begin a new signing secret",
        body=Body("WebhookRotation", _SMALL, required=False),
    ),
    Endpoint(
        "POST",
        f"{_HOOK}/test",
        hooks.test,
        "testWebhookEndpoint",
        Scope.WEBHOOKS,
        "WebhookTest",
        "Send a sample event at once",
        body=Body("WebhookTestRequest", _SMALL),
        about="409 if the endpoint gives no HTTP answer.",
    ),
)
_KEYS, _TENANTS, _TENANT = "/v1/admin/api_keys", "/v1/admin/tenants", "/v1/admin/tenants/{tenant}"
_ADMIN = (
    Endpoint(
        "POST",
        _KEYS,
        admin.create_key,
        "createKey",
        Scope.ADMIN,
        "KeyObject",
        "Create an API key; the answer shows it once",
        body=Body(admin.KeyRequest, _ADMIN_BYTES),
    ),
    Endpoint(
        "GET",
        _KEYS,
        admin.list_keys,
        "listKeys",
        Scope.ADMIN,
        "KeyList",
        "List API keys",
        parameters=(Parameter("tenant", "Only keys of this tenant."), *_LONG_PAGES),
    ),
    Endpoint(
        "DELETE", f"{_KEYS}/{{key_id}}", admin.revoke_key, "revokeKey", Scope.ADMIN, "KeyObject", "Revoke an API key"
    ),
    Endpoint(
        "GET",
        _TENANTS,
        admin.list_tenants,
        "listTenants",
        Scope.ADMIN,
        "TenantList",
        "List tenants with settings",
        parameters=_LONG_PAGES,
    ),
    Endpoint("GET", _TENANT, admin.get_tenant, "getTenant", Scope.ADMIN, "TenantObject", "Read a tenant's settings"),
    Endpoint(
        "PUT",
        _TENANT,
        admin.put_tenant,
        "putTenant",
        Scope.ADMIN,
        "TenantObject",
        "Write a tenant's settings",
        body=Body(TenantSettings, _ADMIN_BYTES),
    ),
    Endpoint(
        "DELETE", _TENANT, admin.delete_tenant, "deleteTenant", Scope.ADMIN, "Deleted", "Remove a tenant's settings"
    ),
)

API: tuple[Endpoint, ...] = (
    *_JOBS,
    *_RESPONSES,
    *_COMPLETIONS,
    *_BATCHES,
    *_FILES,
    *_UPLOADS,
    *_EVENTS,
    *_MODELS,
    *_WEBHOOKS,
    *_ADMIN,
)
