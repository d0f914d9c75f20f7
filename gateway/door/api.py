"""The API: one row per endpoint. The rows drive routing, admission, bodies, the audit and the OpenAPI document.

The most frequent endpoints come first, because a request is compared with one route after another. Of two paths that
match the same request, the longer one comes first. The docstring of a row's handler describes the operation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, get_args

from pydantic import BaseModel

from gateway.access import Scope
from gateway.access.tenant_settings import TenantSettings
from gateway.batches.orders import BatchRequest
from gateway.batches.uploads import UploadCompletion, UploadRequest
from gateway.door.endpoint import IDEMPOTENCY, PAGING, Answer, Body, Call, Endpoint, Parameter
from gateway.door.routes import admin, batches, events, files, jobs, models, moderations, responses
from gateway.door.routes import completions as chats
from gateway.door.routes import webhook_endpoints as hooks
from schemas.kind_bodies import ENDPOINTS
from schemas.openai import CHAT_COMPLETIONS
from schemas.topics import Lane

Handler = Callable[[Call], Awaitable[Answer]]

_SMALL = 64 * 1024
_ADMIN_BYTES = 1024 * 1024
_HOOKING, _ADMIN = Scope.WEBHOOKS, Scope.ADMIN
_LANE = {"enum": list(get_args(Lane))}

_JOB, _RESPONSE, _BATCH = "/v1/jobs/{job_id:path}", "/v1/responses/{response_id:path}", "/v1/batches/{batch_id}"
_CHATS, _CHAT = CHAT_COMPLETIONS, f"{CHAT_COMPLETIONS}/{{completion_id}}"
_FILE, _UPLOAD = "/v1/files/{file_id}", "/v1/uploads/{upload_id}"
_HOOKS, _HOOK = "/v1/webhook_endpoints", "/v1/webhook_endpoints/{webhook_endpoint_id}"
_ROTATE, _TEST = f"{_HOOK}/rotate_secret", f"{_HOOK}/test"
_KEYS, _TENANTS, _TENANT = "/v1/admin/api_keys", "/v1/admin/tenants", "/v1/admin/tenants/{tenant}"


def _limit(most: int) -> Parameter:
    return Parameter("limit", "The maximum number of objects.", {"type": "integer", "minimum": 1, "maximum": most})


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
_MODERATION = Body(moderations.ModerationRequest)
_ROTATION = Body(hooks.WebhookRotation, _SMALL, required=False)
_SETTINGS = Body(TenantSettings, _ADMIN_BYTES)


def _read(
    path: str, handler: Handler, name: str, answer: str | None, parameters: tuple[Parameter, ...] = (), **more: Any
) -> Endpoint:
    return Endpoint("GET", path, handler, name, more.pop("scope", Scope.READ), answer, None, parameters, **more)


def _send(
    path: str,
    handler: Handler,
    name: str,
    answer: str,
    body: Body | str | type[BaseModel] | None = None,
    parameters: tuple[Parameter, ...] = (),
    scope: Scope = Scope.SUBMIT,
    **more: Any,
) -> Endpoint:
    """Return the row of a POST. A body that a model reads is small, unless the row says otherwise."""
    if body is not None and not isinstance(body, Body):
        body = Body(body, None if isinstance(body, str) else _SMALL)
    return Endpoint(more.pop("method", "POST"), path, handler, name, scope, answer, body, parameters, **more)


def _cancel(path: str, handler: Handler, name: str, answer: str = "Deleted", scope: Scope = Scope.CANCEL) -> Endpoint:
    return Endpoint("POST" if path.endswith("/cancel") else "DELETE", path, handler, name, scope, answer)


def _awaited(url: str, name: str, summary: str, request: str, answer: str) -> Endpoint:
    """Return an endpoint whose request waits for the answer of one job."""
    return _send(url, chats.create, f"create{name}", answer, request, _ONCE, summary=summary)


def _form(schema: str) -> Body:
    return Body(schema, media_type="multipart/form-data")


_SUBMIT: tuple[Endpoint, ...] = (
    _send("/v1/jobs", jobs.create, "createJobs", "AcceptedJobs", "JobOrJobs", (*_ONCE, *_LANES), status=202),
    _read("/v1/jobs", jobs.several, "listJobs", "JobList", jobs.FILTERS, prefix=jobs.METADATA),
    _read(_JOB, jobs.retrieve, "getJob", "JobWithResult"),
    _cancel(f"{_JOB}/cancel", jobs.cancel, "cancelJob", "JobObject"),
    _send("/v1/responses", responses.create, "createResponse", "ResponseObject", "ResponseRequest", _ONCE),
    _cancel(f"{_RESPONSE}/cancel", responses.cancel, "cancelResponse", "ResponseObject"),
    _read(
        f"{_RESPONSE}/input_items",
        responses.list_input_items,
        "listInputItems",
        "ItemList",
        PAGING,
        ignores_unknown=True,
    ),
    _read(_RESPONSE, responses.retrieve, "getResponse", "ResponseObject"),
    _cancel(_RESPONSE, responses.delete, "deleteResponse"),
    _awaited(_CHATS, "ChatCompletion", "Answer a chat", "ChatRequest", "ChatCompletion"),
    _read(_CHATS, chats.several, "listChatCompletions", "ChatCompletionList", chats.FILTERS, prefix=chats.LABEL),
    _read(f"{_CHAT}/messages", chats.list_messages, "listChatCompletionMessages", "MessageList", PAGING),
    _read(_CHAT, chats.retrieve, "getChatCompletion", "ChatCompletion"),
    _send(_CHAT, chats.update, "updateChatCompletion", "ChatCompletion", chats.ChatCompletionChange),
    _cancel(_CHAT, chats.delete, "deleteChatCompletion"),
    _awaited("/v1/completions", "Completion", "Continue a text", "CompletionRequest", "TextCompletion"),
    *(_awaited(one.url, one.name, one.title, f"{one.name}Request", f"{one.name}Answer") for one in ENDPOINTS.values()),
    _send("/v1/moderations", moderations.create, "createModeration", "ModerationAnswer", _MODERATION),
)
_BATCHES = (
    _send("/v1/batches", batches.create, "createBatch", "BatchObject", BatchRequest, _ONCE),
    _read("/v1/batches", batches.list_batches, "listBatches", "BatchList", PAGING),
    _read(_BATCH, batches.retrieve, "getBatch", "BatchObject"),
    _cancel(f"{_BATCH}/cancel", batches.cancel, "cancelBatch", "BatchObject"),
    _send("/v1/files", files.upload, "createFile", "FileObject", _form("FileForm"), _ONCE),
    _read("/v1/files", files.list_files, "listFiles", "FileList", _FILES_ASKED),
    _read(_FILE, files.retrieve, "getFile", "FileObject"),
    _cancel(_FILE, files.delete, "deleteFile"),
    _read(f"{_FILE}/content", files.content, "getFileContent", None, _RANGE, answer_type="application/octet-stream"),
    _send("/v1/uploads", files.create_upload, "createUpload", "UploadObject", UploadRequest),
    _send(f"{_UPLOAD}/parts", files.add_part, "createUploadPart", "UploadPart", _form("PartForm")),
    _send(f"{_UPLOAD}/complete", files.complete_upload, "completeUpload", "UploadObject", UploadCompletion),
    _cancel(f"{_UPLOAD}/cancel", files.cancel_upload, "cancelUpload", "UploadObject", Scope.SUBMIT),
)
_OTHERS = (
    _read("/v1/events", events.stream, "streamEvents", None, _EVENTS_ASKED, answer_type="text/event-stream"),
    _read("/v1/models", models.list_models, "listModels", "ModelList"),
    _read("/v1/models/{model:path}", models.retrieve, "getModel", "ModelObject"),
    _read("/v1/webhook_event_types", hooks.event_types, "listWebhookEventTypes", "EventTypeList"),
    _send(_HOOKS, hooks.create, "createWebhookEndpoint", "WebhookEndpointWithSecret", "EndpointTerms", scope=_HOOKING),
    _read(_HOOKS, hooks.list_endpoints, "listWebhookEndpoints", "WebhookEndpointList", PAGING[:2]),
    _read(_HOOK, hooks.retrieve, "getWebhookEndpoint", "WebhookEndpoint"),
    _send(_HOOK, hooks.update, "updateWebhookEndpoint", "WebhookEndpoint", "EndpointChange", scope=_HOOKING),
    _cancel(_HOOK, hooks.delete, "deleteWebhookEndpoint", scope=_HOOKING),
    _send(_ROTATE, hooks.rotate, "rotateWebhookSecret", "WebhookEndpointWithSecret", _ROTATION, scope=_HOOKING),
    _send(_TEST, hooks.test, "testWebhookEndpoint", "WebhookTest", hooks.WebhookTestRequest, scope=_HOOKING),
    _send(_KEYS, admin.create_key, "createKey", "KeyObject", admin.KeyRequest, scope=_ADMIN),
    _read(_KEYS, admin.list_keys, "listKeys", "KeyList", _KEYS_ASKED, scope=_ADMIN),
    _cancel(f"{_KEYS}/{{key_id}}", admin.revoke_key, "revokeKey", "KeyObject", _ADMIN),
    _read(_TENANTS, admin.list_tenants, "listTenants", "TenantList", _LONG_PAGES, scope=_ADMIN),
    _read(_TENANT, admin.get_tenant, "getTenant", "TenantObject", scope=_ADMIN),
    _send(_TENANT, admin.put_tenant, "putTenant", "TenantObject", _SETTINGS, scope=_ADMIN, method="PUT"),
    _cancel(_TENANT, admin.delete_tenant, "deleteTenant", scope=_ADMIN),
)
API = (*_SUBMIT, *_BATCHES, *_OTHERS)
