"""Bounds on a job's JSON Schema: vLLM compiles the schema into a grammar, and the compilation cannot be interrupted.

xgrammar's time grows with the cube of the number of an object's optional properties: 2 s for 1,000 and 24 s for 2,000
(two loaded cores). A pattern with nested repetitions takes about 0.05 s. vLLM compiles one or a few schemas at a time,
so every other job with a schema would wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from workers.engines.base import RequestRejected

MAX_SCHEMA_CHARS: Final = 64 * 1024
MAX_PROPERTIES: Final = 500
"""Limit on the properties of one object."""
MAX_PATTERNS: Final = 50
FIELD: Final = "response_format.json_schema.schema"


def check_schema(schema: dict[str, Any], field: str = FIELD) -> None:
    """Raise RequestRejected, with the field, for a schema that exceeds a bound."""
    size = len(json.dumps(schema, ensure_ascii=False))
    if size > MAX_SCHEMA_CHARS:
        raise RequestRejected(field, f"has {size} characters, and {MAX_SCHEMA_CHARS} are allowed")
    patterns = 0
    for part in _parts(schema):
        properties = part.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise RequestRejected(
                field, f"has an object with {len(properties)} properties, and {MAX_PROPERTIES} are allowed"
            )
        patterns += isinstance(part.get("pattern"), str)
        pattern_properties = part.get("patternProperties")
        patterns += len(pattern_properties) if isinstance(pattern_properties, dict) else 0
    if patterns > MAX_PATTERNS:
        raise RequestRejected(field, f"has {patterns} patterns, and {MAX_PATTERNS} are allowed")


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every object in the schema, at any depth."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
