"""JSON schemas of jobs that a stranger may send to vLLM."""

from __future__ import annotations

import json

from schemas.job import ResponseFormat

SCHEMA = {
    "type": "object",
    "properties": {"known": {"type": "boolean"}},
    "required": ["known"],
    "additionalProperties": False,
}


def as_schema(schema: dict[str, object]) -> ResponseFormat:
    return ResponseFormat.model_validate({"type": "json_schema", "json_schema": {"schema": schema}})


def of(**schema: object) -> dict[str, object]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


UNSUPPORTED = [
    of(type="integer", multipleOf=5),
    of(type="array", uniqueItems=True),
    of(type="array", contains={"const": 1}),
    of(type="string", format="iri"),
    of(type="string", pattern="(["),
    of(type="string", pattern="^(a)\\1$"),
    of(type="integer", minimum=5, maximum=1),
    of(type="integer", minimum=-(10**30)),
    of(enum=[]),
    of(enum=["\ud800"]),
    of(allOf=[{"type": "string"}, {"maxLength": 3}]),
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "object", "properties": [1]},
    {"type": "object", "properties": {f"k{number}": {} for number in range(3000)}},
    json.loads('{"items":' * 100 + "{}" + "}" * 100),
]
"""Schemas that vLLM cannot force an answer to follow."""
ODD = [
    of(**{"$ref": "http://127.0.0.1:9/schema.json"}),
    of(type="string", maxLength=10**9, minLength=10**6),
    of(type="array", items={"type": "integer"}, minItems=10**6),
    of(type="string", pattern="^((a{1,1000}){1,1000}){1,1000}$"),
    of(enum=[f"value {number}" for number in range(2000)]),
    {},
]
"""Schemas that cost much, or that allow anything."""
CIRCULAR = [
    {"$ref": "#"},
    {"$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}}, **of(**{"$ref": "#/$defs/x"})},
]
"""Schemas that refer to themselves without end."""
