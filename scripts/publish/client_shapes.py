"""Writes the client library's `wire.py`: the jobs that it sends and the results that it reads, as dataclasses.

The library imports nothing of the fleet, so its classes are made from the JSON Schemas of `Job` and `Result`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from schemas.job import Job
from schemas.result import Result

_HEAD = '''"""Jobs and results on the wire, written by `python -m scripts.publish` from the fleet's schemas.

A field of a job that is None has the fleet's default. Fields of a result that are absent have their default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
'''
_TAIL = '''    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole JSON object of the result, with members that this version of the library does not know."""

    @property
    def succeeded(self) -> bool:
        """True if the job has an answer."""
        return self.outcome == "succeeded"
'''
_PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "object": "Mapping[str, Any]"}
_LABELS = "Mapping[str, str]"
_WIDTH = 115

Schema = Mapping[str, Any]


def client_shapes() -> str:
    """Return the module's text."""
    job, result = Job.model_json_schema(), Result.model_json_schema()
    shapes = [*result["$defs"].items(), ("Result", result)]
    classes = [_class(name, shape, result["$defs"], sent=False) for name, shape in shapes if "properties" in shape]
    return "\n\n".join((_HEAD, _class("Job", job, job["$defs"], sent=True), *classes)) + _TAIL


def _class(name: str, shape: Schema, others: Schema, *, sent: bool) -> str:
    """Return a class. All fields of a job are optional in the class, because a field without a value is not sent."""
    required = () if sent else shape.get("required", ())
    lines = ["@dataclass(frozen=True, kw_only=True, slots=True)", f"class {name}:", *_docstring(shape, name), ""]
    for field, said in shape["properties"].items():
        kind = _sent(said, others) if sent else _read(said, others)
        if field in required:
            lines.append(f"    {field}: {kind}")
        else:
            default = "None" if sent else _default(said, kind)
            lines.append(f"    {field}: {kind if default != 'None' else _maybe(kind)} = {default}")
        if "description" in said:
            lines += _docstring(said, field)
    return "\n".join(lines) + "\n"


def _maybe(kind: str) -> str:
    return kind if kind.endswith(" | None") else f"{kind} | None"


def _docstring(said: Schema, name: str) -> Iterator[str]:
    text = " ".join(str(said.get("description") or f"The member `{name}`.").split())
    lines = textwrap.wrap(f'"""{text}"""', _WIDTH, break_long_words=False, break_on_hyphens=False)
    yield from (f"    {line}" for line in lines)


def _default(said: Schema, kind: str) -> str:
    if "default" in said:
        return repr(said["default"]).replace("'", '"')
    return "()" if kind.startswith("tuple") else "field(default_factory=dict)" if kind == _LABELS else "None"


def _read(said: Schema, others: Schema) -> str:
    """Return the type of a member that is read: arrays are tuples, and objects instances."""
    if "$ref" in said:
        name = said["$ref"].rpartition("/")[2]
        return name if "properties" in others[name] else _read(others[name], others)
    if "anyOf" in said:
        return _either(said["anyOf"], lambda one: _read(one, others))
    if said.get("type") == "array":
        return f"tuple[{_read(said['items'], others)}, ...]"
    return _LABELS if said.get("type") == "object" else _PLAIN[said.get("type", "string")]


def _sent(said: Schema, others: Schema) -> str:
    """Return the type of a member that is sent: arrays are sequences, and objects mappings."""
    if "$ref" in said:
        return _sent(others[said["$ref"].rpartition("/")[2]], others)
    for several in ("anyOf", "oneOf"):
        if several in said:
            return _either(said[several], lambda one: _sent(one, others))
    if said.get("type") == "array":
        return f"Sequence[{_sent(said['items'], others)}]"
    if said.get("type") == "object" and "properties" not in said and "additionalProperties" in said:
        return _LABELS
    return _PLAIN[said.get("type", "string" if "enum" in said or "const" in said else "object")]


def _either(choices: list[Schema], kind_of: Callable[[Schema], str]) -> str:
    kinds = dict.fromkeys(kind_of(one) for one in choices if one.get("type") != "null")
    is_null = any(one.get("type") == "null" for one in choices)
    return " | ".join([*kinds, *(["None"] if is_null else [])])
