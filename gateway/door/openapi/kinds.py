"""The operations and schemas of the endpoints for texts, made from the table of `schemas.kind_bodies`."""

from __future__ import annotations

from typing import Any

from gateway.access import Scope
from gateway.door.openapi.operation import IDEMPOTENCY, Operation
from schemas.job import Job
from schemas.kind_bodies import EMBEDDINGS, ENDPOINTS, TextEndpoint
from schemas.result import Result

_TEXT = {"type": "string", "minLength": 1}
_WITHOUT_USAGE = {"model": {"type": "string"}, "usage": {"type": ["object", "null"]}}
_SAMPLE = Result.model_validate({"job_id": "job_1", "outcome": "succeeded", "created_at": 0})


def operations(about: str) -> tuple[Operation, ...]:
    """Return the operation of each endpoint; `about` is the description of operations that wait for their answer."""
    return tuple(
        Operation(
            "POST",
            endpoint.url,
            f"create{_name(endpoint)}",
            endpoint.title,
            Scope.SUBMIT,
            f"{_name(endpoint)}Answer",
            about=about,
            parameters=(IDEMPOTENCY,),
            body=f"{_name(endpoint)}Request",
        )
        for endpoint in ENDPOINTS.values()
    )


def kind_schemas(common: dict[str, Any], place: str) -> dict[str, Any]:
    """Return a mapping from names to the schemas of bodies and answers.

    `common` has the members that all bodies may have. `place` is the path of the schemas in the document.
    """
    job = Job.model_json_schema(ref_template=f"{place}{{model}}")["properties"]
    found = {}
    for endpoint in ENDPOINTS.values():
        found[f"{_name(endpoint)}Request"] = _request(endpoint, job, common)
        members = endpoint.answer(_SAMPLE)
        listed = {name: {"type": "array"} for name, value in members.items() if isinstance(value, list)}
        found[f"{_name(endpoint)}Answer"] = _object({**listed, **_WITHOUT_USAGE}, [*listed])
    return found


def _request(endpoint: TextEndpoint, job: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    kind = endpoint.kind
    if kind.model is not None:
        return _object({**kind.model.model_json_schema()["properties"], **common}, _required(kind.model))
    texts = {"anyOf": [_TEXT, job[kind.field]["anyOf"][0]]}
    options = {option: job[option]["anyOf"][0] for option in kind.options}
    if endpoint.url == EMBEDDINGS:
        options["encoding_format"] = {"enum": ["float", "base64"]}
    return _object({"input": texts, **options, **common}, ["input"])


def _required(model: Any) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.is_required()]


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _name(endpoint: TextEndpoint) -> str:
    return endpoint.kind.field.capitalize()
