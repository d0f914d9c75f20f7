"""JSON Schemas of jobs that exceed an engine's limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workers.engines.base import RequestRejected
from workers.engines.vllm.schema_limits import MAX_PATTERNS, MAX_PROPERTIES, MAX_SCHEMA_CHARS, check_schema
from workers.enrichment.answering.profile import Profiles


def properties(count: int, **each: str) -> dict[str, Any]:
    return {"type": "object", "properties": {f"k{n}": {"type": "string", **each} for n in range(count)}}


def test_the_schemas_that_come_with_us_and_large_ones_are_taken() -> None:
    form = Profiles.load()["finance"].response_format
    assert form is not None
    assert form.json_schema is not None
    check_schema(form.json_schema.schema_)
    check_schema({"anyOf": [properties(MAX_PROPERTIES), properties(MAX_PATTERNS, pattern="^a")]})


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (properties(MAX_PROPERTIES + 1), "an object with 501 properties, and 500 are allowed"),
        ({"items": [{"anyOf": [properties(MAX_PROPERTIES + 1)]}]}, "an object with 501 properties"),
        ({"a": properties(30, pattern="^a"), "b": {"patternProperties": dict.fromkeys("abcdefghijklmnopqrstu")}}, "51"),
        ({"const": "x" * MAX_SCHEMA_CHARS}, "characters, and 65536 are allowed"),
        (json.loads('{"items":' * 900 + json.dumps(properties(501)) + "}" * 900), "501 properties"),
    ],
    ids=["properties", "below", "patterns", "size", "deep"],
)
def test_schemas_that_would_keep_an_engine_busy_are_rejected_by_name(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestRejected) as rejected:
        check_schema(schema)
    assert rejected.value.field == "response_format.json_schema.schema"
    assert why in rejected.value.reason
