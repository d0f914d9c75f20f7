"""The API: one row per endpoint. The rows drive routing, admission, bodies, the audit and the OpenAPI document.

The most frequent endpoints come first, because a request is compared with one route after another. Of two paths that
match the same request, the longer one comes first. The docstring of a row's handler describes the operation.
"""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel

from gateway.access import Scope
from gateway.access.tenant_settings import TenantSettings
from gateway.batches.orders import BatchRequest
from gateway.batches.uploads import UploadCompletion, UploadRequest
from gateway.door.endpoint import IDEMPOTENCY, PAGING, Body, Endpoint, Parameter
from gateway.door.routes import admin, batches, completions, events, files, jobs, models, moderations, responses
from gateway.door.routes import webhook_endpoints as hooks
from schemas.kind_bodies import ENDPOINTS
from schemas.openai import CHAT_COMPLETIONS
from schemas.topics import Lane

_SMALL = 64 * 1024
_ADMIN_BYTES = 1024 * 1024
_LANE = {"enum": list(get_args(Lane))}
_SUBMIT, _READ, _CANCEL, _HOOKS, _ADMIN = Scope.SUBMIT, Scope.READ, Scope.CANCEL, Scope.WEBHOOKS, Scope.ADMIN

_JOB, _RESPONSE, _BATCH = "/v1/jobs/{job_id:path}", "/v1/responses/{response_id:path}", "/v1/batches/{batch_id}"
_CHAT = f"{CHAT_COMPLETIONS}/{{completion_id}}"
_FILE, _UPLOAD = "/v1/files/{file_id}", "/v1/uploads/{upload_id}"
_WEBHOOKS, _HOOK = "/v1/webhook_endpoints", "/v1/webhook_endpoints/{webhook_endpoint_id}"
_KEYS, _TENANTS, _TENANT = "/v1/admin/api_keys", "/v1/admin/tenants", "/v1/admin/tenants/{tenant}"


def _limit(most: int) -> Parameter:
    return Parameter("limit", "The maximum number of objects.", {"type": "integer", "minimum": 1, "maximum": most})


def _small(schema: str | type[BaseModel]) -> Body:
    return Body(schema, _SMALL)


def _form(schema: str) -> Body:
    return Body(schema, media_type="multipart/form-data")


_LONG_PAGES = (_limit(1000), PAGING[1])
_LANES = (
    Parameter("lane", "`bulk` jobs wait behind `default` ones; `spare` jobs run while no other waits.", _LANE),
    Parameter("x-postback-lane", "The lane, if the query names none.", _LANE, "header"),
)
_FILES_ASKED = (_limit(10_000), *PAGING[1:], Parameter("purpose", "Only files with this purpose."))
_RANGE = (Parameter("Range", "The bytes to send, such as `bytes=0-1023`.", place="header"),)
_EVENTS_ASKED = (
    Parameter("after", "Begin after this event; 0 begins with the oldest one.", {"type": "integer"}),
    Parameter("types", "Only these types, separated by commas; `batch.*` means all below `batch.`."),
    Parameter("Last-Event-ID", "As `after`, sent by browsers that connect again.", place="header"),
)
_KEYS_ASKED = (Parameter("tenant", "Only keys of this tenant."), *_LONG_PAGES)
_ONCE = (IDEMPOTENCY,)


def _awaited(url: str, name: str, summary: str, request: str, answer: str) -> Endpoint:
    """Return an endpoint whose request waits for the answer of one job."""
    create = completions.create
    return Endpoint("POST", url, create, f"create{name}", _SUBMIT, answer, Body(request), _ONCE, summary=summary)


API: tuple[Endpoint, ...] = (
    Endpoint(
        "POST",
        "/v1/jobs",
        jobs.create,
        "createJobs",
        _SUBMIT,
        "AcceptedJobs",
        Body("JobOrJobs"),
        (*_ONCE, *_LANES),
        202,
    ),
    Endpoint(
        "GET", "/v1/jobs", jobs.several, "listJobs", _READ, "JobList", parameters=jobs.FILTERS, prefix=jobs.METADATA
    ),
    Endpoint("GET", _JOB, jobs.retrieve, "getJob", _READ, "JobWithResult"),
    Endpoint("POST", f"{_JOB}/cancel", jobs.cancel, "cancelJob", _CANCEL, "JobObject"),
    Endpoint(
        "POST",
        "/v1/responses",
        responses.create,
        "createResponse",
        _SUBMIT,
        "ResponseObject",
        Body("ResponseRequest"),
        _ONCE,
    ),
    Endpoint("POST", f"{_RESPONSE}/cancel", responses.cancel, "cancelResponse", _CANCEL, "ResponseObject"),
    Endpoint(
        "GET",
        f"{_RESPONSE}/input_items",
        responses.list_input_items,
        "listInputItems",
        _READ,
        "ItemList",
        parameters=PAGING,
        ignores_unknown=True,
    ),
    Endpoint("GET", _RESPONSE, responses.retrieve, "getResponse", _READ, "ResponseObject"),
    Endpoint("DELETE", _RESPONSE, responses.delete, "deleteResponse", _CANCEL, "Deleted"),
    _awaited(CHAT_COMPLETIONS, "ChatCompletion", "Answer a chat", "ChatRequest", "ChatCompletion"),
    Endpoint(
        "GET",
        CHAT_COMPLETIONS,
        completions.several,
        "listChatCompletions",
        _READ,
        "ChatCompletionList",
        parameters=completions.FILTERS,
        prefix=completions.LABEL,
    ),
    Endpoint(
        "GET",
        f"{_CHAT}/messages",
        completions.list_messages,
        "listChatCompletionMessages",
        _READ,
        "MessageList",
        parameters=PAGING,
    ),
    Endpoint("GET", _CHAT, completions.retrieve, "getChatCompletion", _READ, "ChatCompletion"),
    Endpoint(
        "POST",
        _CHAT,
        completions.update,
        "updateChatCompletion",
        _SUBMIT,
        "ChatCompletion",
        _small(completions.ChatCompletionChange),
    ),
    Endpoint("DELETE", _CHAT, completions.delete, "deleteChatCompletion", _CANCEL, "Deleted"),
    Endpoint(
        "POST",
        "/v1/moderations",
        moderations.create,
        "createModeration",
        _SUBMIT,
        "ModerationAnswer",
        Body(moderations.ModerationRequest),
    ),
    _awaited("/v1/completions", "Completion", "Continue a text", "CompletionRequest", "TextCompletion"),
    *(_awaited(one.url, one.name, one.title, f"{one.name}Request", f"{one.name}Answer") for one in ENDPOINTS.values()),
    Endpoint("POST", "/v1/batches", batches.create, "createBatch", _SUBMIT, "BatchObject", _small(BatchRequest), _ONCE),
    Endpoint("GET", "/v1/batches", batches.list_batches, "listBatches", _READ, "BatchList", parameters=PAGING),
    Endpoint("GET", _BATCH, batches.retrieve, "getBatch", _READ, "BatchObject"),
    Endpoint("POST", f"{_BATCH}/cancel", batches.cancel, "cancelBatch", _CANCEL, "BatchObject"),
    Endpoint("POST", "/v1/files", files.upload, "createFile", _SUBMIT, "FileObject", _form("FileForm"), _ONCE),
    Endpoint("GET", "/v1/files", files.list_files, "listFiles", _READ, "FileList", parameters=_FILES_ASKED),
    Endpoint("GET", _FILE, files.retrieve, "getFile", _READ, "FileObject"),
    Endpoint("DELETE", _FILE, files.delete, "deleteFile", _CANCEL, "Deleted"),
    Endpoint(
        "GET",
        f"{_FILE}/content",
        files.content,
        "getFileContent",
        _READ,
        None,
        parameters=_RANGE,
        answer_type="application/octet-stream",
    ),
    Endpoint(
        "POST", "/v1/uploads", files.create_upload, "createUpload", _SUBMIT, "UploadObject", _small(UploadRequest)
    ),
    Endpoint("POST", f"{_UPLOAD}/parts", files.add_part, "createUploadPart", _SUBMIT, "UploadPart", _form("PartForm")),
    Endpoint(
        "POST",
        f"{_UPLOAD}/complete",
        files.complete_upload,
        "completeUpload",
        _SUBMIT,
        "UploadObject",
        _small(UploadCompletion),
    ),
    Endpoint("POST", f"{_UPLOAD}/cancel", files.cancel_upload, "cancelUpload", _CANCEL, "UploadObject"),
    Endpoint(
        "GET",
        "/v1/events",
        events.stream,
        "streamEvents",
        _READ,
        None,
        parameters=_EVENTS_ASKED,
        answer_type="text/event-stream",
    ),
    Endpoint("GET", "/v1/models", models.list_models, "listModels", _READ, "ModelList"),
    Endpoint("GET", "/v1/models/{model:path}", models.retrieve, "getModel", _READ, "ModelObject"),
    Endpoint("GET", "/v1/webhook_event_types", hooks.event_types, "listWebhookEventTypes", _READ, "EventTypeList"),
    Endpoint(
        "POST",
        _WEBHOOKS,
        hooks.create,
        "createWebhookEndpoint",
        _HOOKS,
        "WebhookEndpointWithSecret",
        _small("WebhookEndpointRequest"),
    ),
    Endpoint(
        "GET",
        _WEBHOOKS,
        hooks.list_endpoints,
        "listWebhookEndpoints",
        _READ,
        "WebhookEndpointList",
        parameters=PAGING[:2],
    ),
    Endpoint("GET", _HOOK, hooks.retrieve, "getWebhookEndpoint", _READ, "WebhookEndpoint"),
    Endpoint(
        "POST", _HOOK, hooks.update, "updateWebhookEndpoint", _HOOKS, "WebhookEndpoint", _small("WebhookEndpointChange")
    ),
    Endpoint("DELETE", _HOOK, hooks.delete, "deleteWebhookEndpoint", _HOOKS, "Deleted"),
    Endpoint(
        "POST",
        f"{_HOOK}/rotate_secret",
        hooks.rotate,
        "rotateWebhookSecret",
        _HOOKS,
        "WebhookEndpointWithSecret",
        Body("WebhookRotation", _SMALL, required=False),
    ),
    Endpoint(
        "POST", f"{_HOOK}/test", hooks.test, "testWebhookEndpoint", _HOOKS, "WebhookTest", _small("WebhookTestRequest")
    ),
    Endpoint("POST", _KEYS, admin.create_key, "createKey", _ADMIN, "KeyObject", Body(admin.KeyRequest, _ADMIN_BYTES)),
    Endpoint("GET", _KEYS, admin.list_keys, "listKeys", _ADMIN, "KeyList", parameters=_KEYS_ASKED),
    Endpoint("DELETE", f"{_KEYS}/{{key_id}}", admin.revoke_key, "revokeKey", _ADMIN, "KeyObject"),
    Endpoint("GET", _TENANTS, admin.list_tenants, "listTenants", _ADMIN, "TenantList", parameters=_LONG_PAGES),
    Endpoint("GET", _TENANT, admin.get_tenant, "getTenant", _ADMIN, "TenantObject"),
    Endpoint("PUT", _TENANT, admin.put_tenant, "putTenant", _ADMIN, "TenantObject", Body(TenantSettings, _ADMIN_BYTES)),
    Endpoint("DELETE", _TENANT, admin.delete_tenant, "deleteTenant", _ADMIN, "Deleted"),
)
