"""The OpenAPI document, version 3.1, made from the rows of `gateway.door.api`."""

from __future__ import annotations

import re
from typing import Any

from gateway.door.api import API
from gateway.door.endpoint import Body, Endpoint, Parameter
from gateway.door.openapi.schemas import ref, schemas

_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_ABOUT = (
    "Asynchronous inference: submit jobs, read their answers, or receive them as signed callbacks. "
    "Paths and bodies of OpenAI's API work with OpenAI's clients; set their base URL to this server's `/v1`."
)


def openapi_document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in API:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _described(endpoint)
    models = [row.body.schema for row in API if row.body is not None and not isinstance(row.body.schema, str)]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Postback", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(models),
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


def _described(endpoint: Endpoint) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "string"} if endpoint.answer is None else ref(endpoint.answer)
    described = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "description": f"{endpoint.about} Needs the scope `{endpoint.scope}`.".strip(),
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
    return {"required": body.required, "content": {body.media_type: {"schema": ref(name)}}}


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
