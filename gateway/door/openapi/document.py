"""The whole OpenAPI document, version 3.1."""

from __future__ import annotations

import re
from typing import Any

from gateway.door.openapi import admin, files, jobs, webhooks
from gateway.door.openapi.operation import Operation, Parameter
from gateway.door.openapi.schemas import ref, schemas

OPERATIONS: tuple[Operation, ...] = (
    *jobs.OPERATIONS,
    *files.OPERATIONS,
    *webhooks.OPERATIONS,
    *admin.OPERATIONS,
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
