"""The schemas of bodies. The schemas of jobs, results and settings come from their pydantic models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from gateway.webhooks.event_types import EVENT_TYPES
from schemas.job import FIRST_SECONDS, LAST_SECONDS, MAX_CHOICES, MAX_TOP_LOGPROBS, Job
from schemas.kind_bodies import EMBEDDINGS, ENDPOINTS, TextEndpoint
from schemas.openai import URLS
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.tools import MAX_TOOLS
from workers.delivery.endpoint_events import MOST_A_SECOND

PLACE = "#/components/schemas/"
_SAMPLE = Result.model_validate({"job_id": "job_1", "outcome": "succeeded", "created_at": 0})
_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_TIME: dict[str, Any] = {"type": ["integer", "null"], "description": "Unix seconds."}
_LABELS: dict[str, Any] = {"type": "object", "additionalProperties": _TEXT}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}
_LISTED = (
    ("JobList", "JobObject"),
    ("ItemList", "InputItem"),
    ("ModelList", "ModelObject"),
    ("FileList", "FileObject"),
    ("BatchList", "BatchObject"),
    ("WebhookEndpointList", "WebhookEndpoint"),
    ("KeyList", "KeyObject"),
    ("TenantList", "TenantObject"),
)


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": f"{PLACE}{name}"}


def _object(kind: str | None, /, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object; `kind` is the value of its `object`. Only `id` and `object` are required."""
    named = {"id": _TEXT, "object": {"const": kind}} if kind is not None else {}
    return {"type": "object", "properties": {**named, **properties}, "required": list(named)}


def _asked(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _list_of(name: str) -> dict[str, Any]:
    page = {"first_id": _MAYBE, "last_id": _MAYBE, "has_more": {"type": "boolean"}}
    said = {"object": {"const": "list"}, "data": {"type": "array", "items": ref(name)}, **page}
    return {"type": "object", "properties": said, "required": ["object", "data"]}


_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": _MAYBE,
                "code": _MAYBE,
                "problems": {
                    "type": "array",
                    "items": _object(None, index={"type": ["integer", "null"]}, field=_TEXT, reason=_TEXT),
                },
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_JOB: dict[str, Any] = {
    "status": {"enum": ["queued", "cancelling", *map(str, Outcome)]},
    "created_at": _WHOLE,
    "not_before": _TIME,
    "finished_at": _TIME,
    "url": _TEXT,
    "model_id": _MAYBE,
    "custom_id": _MAYBE,
    "batch_id": _MAYBE,
    "line": {"type": ["integer", "null"]},
    "metadata": _LABELS,
    "submitted_by": _MAYBE,
    "prompt_sha256": _MAYBE,
}
_EVENT_TYPES: dict[str, Any] = {"type": "array", "items": {"enum": list(EVENT_TYPES)}, "minItems": 1}
_ENDPOINT: dict[str, Any] = {
    "name": {"type": "string", "minLength": 1, "maxLength": 256},
    "url": {"type": "string", "format": "uri"},
    "event_types": _EVENT_TYPES,
    "headers": {**_LABELS, "description": "HTTP headers of each request; answers hide their values."},
    "enabled": {"type": "boolean"},
    "rate_limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": MOST_A_SECOND,
        "description": "The most callbacks a second; null removes the limit.",
    },
}
_STORED_ENDPOINT: dict[str, Any] = {
    **_ENDPOINT,
    "signing_secret_hint": _TEXT,
    "created_at": _WHOLE,
    "updated_at": _WHOLE,
}
_WEBHOOKS: dict[str, Any] = {
    "WebhookEndpoint": _object("webhook_endpoint", **_STORED_ENDPOINT),
    "WebhookEndpointWithSecret": _object("webhook_endpoint", **_STORED_ENDPOINT, signing_secret=_TEXT),
    "WebhookEndpointRequest": {
        "type": "object",
        "properties": _ENDPOINT,
        "required": ["name", "url", "event_types"],
        "additionalProperties": False,
    },
    "WebhookEndpointChange": {"type": "object", "properties": _ENDPOINT, "additionalProperties": False},
    "WebhookRotation": _asked({}, keep_old_secret_active_for_24_hours={"type": "boolean"}),
    "WebhookTestRequest": _asked({"event_type": _EVENT_TYPES["items"]}),
    "WebhookTest": _object(
        None,
        object={"const": "webhook_endpoint.test"},
        webhook_endpoint_id=_TEXT,
        event_type=_TEXT,
        status_code=_WHOLE,
        success={"const": True},
    ),
    "EventTypeList": _asked({"object": {"const": "list"}, "data": _EVENT_TYPES}),
}
_TUNED: dict[str, Any] = {
    "model": _TEXT,
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": 0},
    "metadata": {**_LABELS, "description": "`webhook_url` is the job's callback; results do not repeat it."},
    "sources": ref("Sources"),
    "context_window": {"type": "integer", "minimum": 16, "maximum": 10_000_000},
    "adapter": _TEXT,
    "priority": {"type": "integer", "minimum": 0, "maximum": 9},
    "not_before": {"type": "number", "minimum": FIRST_SECONDS, "maximum": LAST_SECONDS},
    "ttl_seconds": {"type": "number", "exclusiveMinimum": 0},
}
_STOP: dict[str, Any] = {
    "anyOf": [_TEXT, {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4}]
}
_TOKENS: dict[str, Any] = {"type": "integer", "minimum": 1}
_ANSWERS: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": MAX_CHOICES}
_TOP_LOGPROBS: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS}
_MESSAGES: dict[str, Any] = {"type": "array", "items": ref("Message"), "minItems": 1}

_PLAIN: dict[str, dict[str, Any]] = {
    "Error": _ERROR,
    "JobOrJobs": {"anyOf": [ref("Job"), {"type": "array", "items": ref("Job"), "minItems": 1, "maxItems": 1000}]},
    "JobObject": _object("job", **_JOB),
    "AcceptedJobs": {"anyOf": [ref("JobObject"), ref("JobList")]},
    "JobWithResult": _object("job", **_JOB, result={"anyOf": [ref("Result"), {"type": "null"}]}),
    "ChatRequest": _asked(
        {"messages": _MESSAGES},
        **_TUNED,
        stop=_STOP,
        max_completion_tokens=_TOKENS,
        response_format=ref("ResponseFormat"),
        reasoning_effort=_TEXT,
        n=_ANSWERS,
        logprobs={"type": "boolean"},
        top_logprobs=_TOP_LOGPROBS,
        tools={"type": "array", "items": ref("Tool"), "minItems": 1, "maxItems": MAX_TOOLS},
        tool_choice={"anyOf": [{"enum": ["none", "auto", "required"]}, ref("NamedTool")]},
        parallel_tool_calls={"type": "boolean"},
    ),
    "CompletionRequest": _asked(
        {"prompt": {"type": "string", "minLength": 1}},
        **_TUNED,
        stop=_STOP,
        max_tokens=_TOKENS,
        n=_ANSWERS,
        logprobs=_TOP_LOGPROBS,
    ),
    "ResponseRequest": _asked(
        {"input": {"anyOf": [_TEXT, {"type": "array", "items": {"type": "object"}, "minItems": 1}]}},
        **_TUNED,
        instructions=_TEXT,
        max_output_tokens=_TOKENS,
        reasoning={"type": "object"},
        include={"type": "array", "items": _TEXT},
        tools={"type": "array", "items": {"type": "object"}},
        tool_choice={"type": ["string", "object"]},
        parallel_tool_calls={"type": "boolean"},
        top_logprobs=_TOP_LOGPROBS,
        background={"type": "boolean"},
        store={"type": "boolean"},
    ),
    "ChatCompletion": _object("chat.completion", model=_TEXT, created=_WHOLE, choices={"type": "array"}),
    "TextCompletion": _object("text_completion", model=_TEXT, created=_WHOLE, choices={"type": "array"}),
    "ResponseObject": _object(
        "response",
        status={"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
        created_at=_WHOLE,
        completed_at=_TIME,
        background={"type": "boolean"},
        error={"type": ["object", "null"]},
        incomplete_details={"type": ["object", "null"]},
        metadata=_LABELS,
        model=_TEXT,
        output={"type": "array"},
        output_text=_TEXT,
        postback={"type": "object", "description": "Postback's own fields: status, sources, citations, notes."},
    ),
    "InputItem": _asked({"id": _TEXT, "type": {"const": "message"}}, role=_TEXT, content={"type": "array"}),
    "ModelObject": _object("model", created=_WHOLE, owned_by=_TEXT),
    "FileForm": _asked(
        {"file": {"type": "string", "format": "binary"}, "purpose": _TEXT},
        **{"expires_after[anchor]": {"const": "created_at"}, "expires_after[seconds]": _WHOLE},
    ),
    "FileObject": _object(
        "file", bytes=_WHOLE, created_at=_WHOLE, filename=_TEXT, purpose=_TEXT, status=_TEXT, expires_at=_TIME
    ),
    "UploadRequest": _asked(
        {"bytes": {"type": "integer", "minimum": 1}, "filename": _TEXT, "mime_type": _TEXT, "purpose": _TEXT},
        expires_after=_asked({"anchor": {"const": "created_at"}, "seconds": _WHOLE}),
    ),
    "UploadObject": _object(
        "upload",
        bytes=_WHOLE,
        created_at=_WHOLE,
        expires_at=_WHOLE,
        filename=_TEXT,
        purpose=_TEXT,
        status={"enum": ["pending", "completed", "cancelled", "expired"]},
        file={"anyOf": [ref("FileObject"), {"type": "null"}]},
    ),
    "PartForm": _asked({"data": {"type": "string", "format": "binary"}}),
    "UploadPart": _object("upload.part", created_at=_WHOLE, upload_id=_TEXT),
    "UploadCompletion": _asked(
        {"part_ids": {"type": "array", "items": _TEXT, "minItems": 1, "uniqueItems": True}},
        md5={"type": "string", "pattern": "^[0-9A-Fa-f]{32}$"},
    ),
    "BatchRequest": _asked(
        {"input_file_id": _TEXT, "endpoint": {"enum": list(URLS)}, "completion_window": {"const": "24h"}},
        metadata=_LABELS,
    ),
    "BatchObject": _object(
        "batch",
        endpoint=_TEXT,
        status=_TEXT,
        input_file_id=_TEXT,
        output_file_id=_MAYBE,
        error_file_id=_MAYBE,
        request_counts=_object(None, total=_WHOLE, completed=_WHOLE, failed=_WHOLE),
        metadata={"type": ["object", "null"]},
        model=_MAYBE,
        usage={"type": ["object", "null"]},
    ),
    "KeyObject": _object(
        "api_key",
        status={"enum": ["valid", "expired", "revoked"]},
        tenant=_TEXT,
        scopes={"type": "array", "items": _TEXT},
        label=_MAYBE,
        key={**_TEXT, "description": "The key itself, only in the answer that creates it."},
        created_at=_TIME,
        expires_at=_TIME,
        revoked_at=_TIME,
        last_used_at=_TIME,
    ),
    "TenantObject": _object("tenant", settings=ref("TenantSettings")),
    "Deleted": _asked({"id": _TEXT, "object": _TEXT, "deleted": {"const": True}}),
}


def schemas(bodies: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Return a mapping from names to all schemas; `bodies` are the models of request bodies."""
    found = dict(_PLAIN | _WEBHOOKS | {name: _list_of(item) for name, item in _LISTED})
    models: tuple[type[BaseModel], ...] = (Job, Result, *bodies)
    for model in models:
        schema = model.model_json_schema(ref_template=PLACE + "{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    for endpoint in ENDPOINTS.values():
        found[f"{endpoint.name}Request"] = _text_request(endpoint, found["Job"]["properties"])
        found[f"{endpoint.name}Answer"] = _text_answer(endpoint)
    return dict(sorted(found.items()))


def _text_request(endpoint: TextEndpoint, job: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a body of an endpoint for texts; `job` has the schemas of a job's fields."""
    common = {name: _TUNED[name] for name in ("model", "metadata", "priority", "not_before", "ttl_seconds")}
    kind = endpoint.kind
    if kind.model is not None:
        own = kind.model.model_json_schema()
        return _asked({name: own["properties"][name] for name in own["required"]}, **{**own["properties"], **common})
    texts = {"anyOf": [{"type": "string", "minLength": 1}, job[kind.field]["anyOf"][0]]}
    options = {option: job[option]["anyOf"][0] for option in kind.options}
    if endpoint.url == EMBEDDINGS:
        options["encoding_format"] = {"enum": ["float", "base64"]}
    return _asked({"input": texts}, **options, **common)


def _text_answer(endpoint: TextEndpoint) -> dict[str, Any]:
    listed = {name: {"type": "array"} for name, value in endpoint.answer(_SAMPLE).items() if isinstance(value, list)}
    return _asked(listed, model=_TEXT, usage={"type": ["object", "null"]})
