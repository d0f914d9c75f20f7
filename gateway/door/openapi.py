"""The OpenAPI document of the door, version 3.1, made from the rows of `gateway.door.api`.

The schemas of jobs, results, settings and checked bodies come from their pydantic models. Other schemas name their
members, whose types are in one table. The document needs no credential.
Source: OpenAPI Specification 3.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.door.api import API
from gateway.door.door import Door
from gateway.door.endpoint import Body, Endpoint, Parameter
from gateway.webhooks.endpoints import EVENT_TYPES, EndpointTerms
from schemas.job import FIRST_SECONDS, LAST_SECONDS, MAX_CHOICES, MAX_TOP_LOGPROBS, Job
from schemas.kind_bodies import EMBEDDINGS, ENDPOINTS, TextEndpoint
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.screening import CATEGORIES
from schemas.tools import MAX_TOOLS

_PLACE = "#/components/schemas/"
_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_ABOUT = (
    "Asynchronous inference: submit jobs, read their answers, or receive them as signed callbacks. "
    "Paths and bodies of OpenAI's API work with OpenAI's clients; set their base URL to this server's `/v1`."
)
_SAMPLE = Result.model_validate({"job_id": "job_1", "outcome": "succeeded", "created_at": 0})


def openapi_document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in API:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _described(endpoint)
    models = [row.body.schema for row in API if row.body is not None and not isinstance(row.body.schema, str)]
    refusal = {"description": "A refusal. Every status from 400 on has this shape.", "content": _json(_ref("Error"))}
    bearer = {"type": "http", "scheme": "bearer", "description": "An API key (`pk_…`), or a token."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Postback", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(models),
            "securitySchemes": {"bearer": bearer},
            "responses": {"Error": refusal},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"{_PLACE}{name}"}


def _described(endpoint: Endpoint) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "string"} if endpoint.answer is None else _ref(endpoint.answer)
    summary, about = endpoint.described
    described = {
        "operationId": endpoint.name,
        "summary": summary,
        "description": f"{about} Needs the scope `{endpoint.scope}`.".strip(),
        "parameters": [*map(_in_path, _PARAMETER.findall(endpoint.template)), *map(_parameter, endpoint.parameters)],
        "responses": {
            str(endpoint.status): {
                "description": "Done." if endpoint.status == 200 else "Accepted.",
                "content": {endpoint.answer_type: {"schema": answer}},
            },
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if endpoint.body is not None:
        described["requestBody"] = _body(endpoint.body)
    return described


def _body(body: Body) -> dict[str, Any]:
    name = body.schema if isinstance(body.schema, str) else body.schema.__name__
    return {"required": body.required, "content": {body.media_type: {"schema": _ref(name)}}}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    said = {"name": parameter.name, "in": parameter.place, "required": False, "description": parameter.meaning}
    return {**said, "schema": dict(parameter.schema)}


# -- schemas -----------------------------------------------------------------------------------------------------------

_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_YES: dict[str, Any] = {"type": "boolean"}
_LIST: dict[str, Any] = {"type": "array"}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}
_MAYBE_OBJECT: dict[str, Any] = {"type": ["object", "null"]}
_TIME: dict[str, Any] = {"type": ["integer", "null"], "description": "Unix seconds."}
_LABELS: dict[str, Any] = {"type": "object", "additionalProperties": _TEXT}
_TOKENS: dict[str, Any] = {"type": "integer", "minimum": 1}
_TOP_LOGPROBS: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS}
_EVENTS: dict[str, Any] = {"type": "array", "items": {"enum": list(EVENT_TYPES)}, "minItems": 1}
_OBJECTS: dict[str, Any] = {"type": "array", "items": {"type": "object"}}

_TYPES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bytes", "created_at", "updated_at", "status_code", "created", "total", "completed"), _WHOLE),
    **dict.fromkeys(("finished_at", "completed_at", "expires_at", "revoked_at", "last_used_at"), _TIME),
    **dict.fromkeys(("model_id", "custom_id", "batch_id", "submitted_by", "prompt_sha256", "label", "param"), _MAYBE),
    **dict.fromkeys(("output_file_id", "error_file_id", "first_id", "last_id", "code", "signing_secret_hint"), _MAYBE),
    **dict.fromkeys(("enabled", "background", "store", "parallel_tool_calls", "has_more"), _YES),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), _TOKENS),
    **dict.fromkeys(("choices", "output", "content"), _LIST),
    **dict.fromkeys(("error", "incomplete_details", "usage"), _MAYBE_OBJECT),
    "line": {"type": ["integer", "null"]},
    "index": {"type": ["integer", "null"]},
    "failed": _WHOLE,
    "metadata": _LABELS,
    "scopes": {"type": "array", "items": _TEXT},
    "name": {"type": "string", "minLength": 1, "maxLength": 256},
    "event_types": _EVENTS,
    "headers": {**_LABELS, "description": "HTTP headers of each request; answers hide their values."},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": 0},
    "sources": _ref("Sources"),
    "context_window": {"type": "integer", "minimum": 16, "maximum": 10_000_000},
    "priority": {"type": "integer", "minimum": 0, "maximum": 9},
    "ttl_seconds": {"type": "number", "exclusiveMinimum": 0},
    "not_before": {"type": "number", "minimum": FIRST_SECONDS, "maximum": LAST_SECONDS},
    "rate_limit": {"type": ["integer", "null"]},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES},
    "top_logprobs": _TOP_LOGPROBS,
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4}]},
}
"""The types of members that are no plain texts, the same in every object."""


def _members(names: str) -> dict[str, Any]:
    return {name: _TYPES.get(name, _TEXT) for name in names.split()}


def _object(kind: str, names: str, **own: Any) -> dict[str, Any]:
    """Return the schema of an answer; `kind` is the value of its `object`. Only `id` and `object` are required."""
    said = {"id": _TEXT, "object": {"const": kind}}
    return {"type": "object", "properties": said | _members(names) | own, "required": list(said)}


def _asked(required: str, optional: str = "", /, **own: Any) -> dict[str, Any]:
    """Return the schema of an object with these members; `own` are types that differ from `_TYPES`."""
    return {"type": "object", "properties": _members(f"{required} {optional}") | own, "required": required.split()}


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return _asked(
        "object data", "first_id last_id has_more", object={"const": "list"}, data={"type": "array", "items": items}
    )


def _by_category(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with a member for each category of moderations."""
    return {"type": "object", "properties": dict.fromkeys(CATEGORIES, schema), "required": list(CATEGORIES)}


_WEBHOOK = "name url event_types headers enabled rate_limit"
_STORED_WEBHOOK = f"{_WEBHOOK} signing_secret_hint created_at updated_at"
_JOB = "created_at finished_at url model_id custom_id batch_id line metadata submitted_by prompt_sha256"
_STATUS = {"enum": ["queued", "cancelling", *map(str, Outcome)]}
_CALLBACK = {"metadata": {**_LABELS, "description": "`webhook_url` is the job's callback; results do not repeat it."}}
_TUNED = "model temperature top_p seed metadata sources context_window adapter priority not_before ttl_seconds"

_PLAIN: dict[str, dict[str, Any]] = {
    "Error": _asked(
        "error",
        error=_asked("message type param code", problems={"type": "array", "items": _asked("", "index field reason")}),
    ),
    "JobOrJobs": {"anyOf": [_ref("Job"), {"type": "array", "items": _ref("Job"), "minItems": 1, "maxItems": 1000}]},
    "JobObject": _object("job", _JOB, status=_STATUS, not_before=_TIME),
    "AcceptedJobs": {"anyOf": [_ref("JobObject"), _ref("JobList")]},
    "JobWithResult": _object(
        "job", _JOB, status=_STATUS, not_before=_TIME, result={"anyOf": [_ref("Result"), {"type": "null"}]}
    ),
    "ChatRequest": _asked(
        "messages",
        f"{_TUNED} stop max_completion_tokens reasoning_effort n top_logprobs parallel_tool_calls",
        messages={"type": "array", "items": _ref("Message"), "minItems": 1},
        response_format=_ref("ResponseFormat"),
        logprobs=_YES,
        tools={"type": "array", "items": _ref("Tool"), "minItems": 1, "maxItems": MAX_TOOLS},
        tool_choice={"anyOf": [{"enum": ["none", "auto", "required"]}, _ref("NamedTool")]},
        **_CALLBACK,
    ),
    "CompletionRequest": _asked(
        "prompt",
        f"{_TUNED} stop max_tokens n",
        prompt={"type": "string", "minLength": 1},
        logprobs=_TOP_LOGPROBS,
        **_CALLBACK,
    ),
    "ResponseRequest": _asked(
        "input",
        f"{_TUNED} instructions max_output_tokens parallel_tool_calls top_logprobs background store",
        input={"anyOf": [_TEXT, {**_OBJECTS, "minItems": 1}]},
        reasoning={"type": "object"},
        include={"type": "array", "items": _TEXT},
        tools=_OBJECTS,
        tool_choice={"type": ["string", "object"]},
        **_CALLBACK,
    ),
    "ChatCompletion": _object("chat.completion", "model created choices metadata"),
    "StoredMessage": _asked("id role", "name content", content=_MAYBE, content_parts={"type": ["array", "null"]}),
    "ModerationAnswer": _asked(
        "id model results",
        results={
            "type": "array",
            "items": _asked(
                "flagged categories category_scores category_applied_input_types",
                flagged=_YES,
                categories=_by_category({"type": ["boolean", "null"]}),
                category_scores=_by_category({"type": ["number", "null"], "minimum": 0, "maximum": 1}),
                category_applied_input_types=_by_category({"type": "array", "items": {"const": "text"}}),
                postback={"type": "object", "description": "The strictest verdict, and the rules that match."},
            ),
        },
    ),
    "TextCompletion": _object("text_completion", "model created choices"),
    "ResponseObject": _object(
        "response",
        "created_at completed_at background error incomplete_details metadata model output output_text",
        status={"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
        postback={"type": "object", "description": "Postback's own fields: status, sources, citations, notes."},
    ),
    "InputItem": _asked("id type", "role content", type={"const": "message"}),
    "ModelObject": _object("model", "created owned_by"),
    "FileForm": _asked(
        "file purpose",
        file={"type": "string", "format": "binary"},
        **{"expires_after[anchor]": {"const": "created_at"}, "expires_after[seconds]": _WHOLE},
    ),
    "FileObject": _object("file", "bytes created_at filename purpose status expires_at"),
    "UploadObject": _object(
        "upload",
        "bytes created_at expires_at filename purpose",
        status={"enum": ["pending", "completed", "cancelled", "expired"]},
        file={"anyOf": [_ref("FileObject"), {"type": "null"}]},
    ),
    "PartForm": _asked("data", data={"type": "string", "format": "binary"}),
    "UploadPart": _object("upload.part", "created_at upload_id"),
    "BatchObject": _object(
        "batch",
        "endpoint status input_file_id output_file_id error_file_id usage",
        request_counts=_asked("", "total completed failed"),
        metadata=_MAYBE_OBJECT,
        model=_MAYBE,
    ),
    "KeyObject": _object(
        "api_key",
        "tenant scopes label created_at expires_at revoked_at last_used_at",
        status={"enum": ["valid", "expired", "revoked"]},
        key={**_TEXT, "description": "The key itself, only in the answer that creates it."},
    ),
    "TenantObject": _object("tenant", "", settings=_ref("TenantSettings")),
    "Deleted": _asked("id object deleted", deleted={"const": True}),
    "WebhookEndpoint": _object("webhook_endpoint", _STORED_WEBHOOK),
    "WebhookEndpointWithSecret": _object("webhook_endpoint", f"{_STORED_WEBHOOK} signing_secret"),
    "WebhookTest": _asked(
        "",
        "webhook_endpoint_id event_type status_code",
        object={"const": "webhook_endpoint.test"},
        success={"const": True},
    ),
    "EventTypeList": _asked("object data", object={"const": "list"}, data=_EVENTS),
    "ItemList": _list_of(_ref("InputItem")),
    "ChatCompletionList": _list_of(_ref("ChatCompletion")),
    "MessageList": _list_of(_ref("StoredMessage")),
    "KeyList": _list_of(_ref("KeyObject")),
    "WebhookEndpointList": _list_of(_ref("WebhookEndpoint")),
    **{f"{name}List": _list_of(_ref(f"{name}Object")) for name in ("Job", "Model", "File", "Batch", "Tenant")},
}


def _schemas(bodies: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Return a mapping from names to all schemas; `bodies` are the models of request bodies."""
    found: dict[str, Any] = dict(_PLAIN)
    models: tuple[type[BaseModel], ...] = (Job, Result, EndpointTerms, *bodies)
    for model in models:
        schema = model.model_json_schema(ref_template=_PLACE + "{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    found["EndpointChange"] = {**found["EndpointTerms"], "required": []}
    for endpoint in ENDPOINTS.values():
        found[f"{endpoint.name}Request"] = _text_request(endpoint, found["Job"]["properties"])
        listed = [name for name, value in endpoint.answer(_SAMPLE).items() if isinstance(value, list)]
        found[f"{endpoint.name}Answer"] = _asked(" ".join(listed), "model usage", **dict.fromkeys(listed, _LIST))
    return dict(sorted(found.items()))


def _text_request(endpoint: TextEndpoint, job: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a body of an endpoint for texts; `job` has the schemas of a job's fields."""
    common, kind = "model metadata priority not_before ttl_seconds", endpoint.kind
    if kind.model is not None:
        own = kind.model.model_json_schema()
        return _asked(" ".join(own["required"]), common, **own["properties"], **_CALLBACK)
    options = {option: job[option]["anyOf"][0] for option in kind.options}
    if endpoint.url == EMBEDDINGS:
        options["encoding_format"] = {"enum": ["float", "base64"]}
    texts = {"anyOf": [{"type": "string", "minLength": 1}, job[kind.field]["anyOf"][0]]}
    return _asked("input", common, input=texts, **options, **_CALLBACK)


def document_routes(door: Door) -> list[Route]:
    """Return the route of `/openapi.json`. The room of pages shows the document to people."""

    async def as_json(request: Request) -> Response:
        await door.visit(request)
        return Response(_rendered(), media_type="application/json")

    return [Route("/openapi.json", as_json)]


@cache
def _rendered() -> bytes:
    """Return the document, which is made at the first request and kept."""
    return to_json(openapi_document())
