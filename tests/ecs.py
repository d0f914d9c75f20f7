"""Checks log lines against the published fields of the Elastic Common Schema.

Source of names and types: `ecs_fields.tsv`, whose first line names its origin. A program's own fields have its name as
prefix (ECS guidelines, "custom fields").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

OWN = "postback."
REQUIRED = ("@timestamp", "ecs.version", "service.name")
LOG_REQUIRED = (*REQUIRED, "log.level", "message")

_ROWS = [
    row.split("\t") for row in Path(__file__).with_name("ecs_fields.tsv").read_text().splitlines() if row[0] != "#"
]
TYPES: dict[str, str] = {row[0]: row[1] for row in _ROWS}
ARRAYS = {row[0] for row in _ROWS if row[2:] == ["array"]}


def problems(line: str, required: Iterable[str] = LOG_REQUIRED) -> list[str]:
    """Return each part of a log line that ECS does not allow; nothing for a valid line."""
    try:
        fields = json.loads(line, parse_constant=_no_number, object_pairs_hook=_once_each)
    except ValueError as error:
        return [f"no JSON ({error}): {line[:200]}"]
    if not isinstance(fields, dict):
        return [f"no object: {line[:200]}"]
    missing = [f"{name} is missing: {line[:200]}" for name in required if name not in fields]
    return missing + [found for name, value in fields.items() for found in _problems_of(name, value)]


def log_lines(text: str) -> list[dict[str, Any]]:
    """The fields of each log line in a process's output; fails if any line is not ECS."""
    lines = text.splitlines()
    assert [problem for line in lines for problem in problems(line)] == []
    return [json.loads(line) for line in lines]


def _problems_of(name: str, value: Any) -> Iterator[str]:
    if name.startswith(OWN):
        return
    if name not in TYPES:
        yield f"{name} is no ECS field"
    elif name in ARRAYS and not isinstance(value, list):
        yield f"{name} is no array"
    elif not all(_fits(TYPES[name], one) for one in (value if isinstance(value, list) else [value])):
        yield f"{name} is no {TYPES[name]}: {value!r}"


def _fits(kind: str, value: Any) -> bool:
    return _FITS.get(kind, _is_text)(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and bool(ip_address(value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FITS: dict[str, Callable[[Any], bool]] = {
    "date": _is_date,
    "ip": _is_address,
    **dict.fromkeys(("long", "integer"), _is_integer),
    **dict.fromkeys(("float", "double", "scaled_float"), _is_number),
    "boolean": lambda value: isinstance(value, bool),
    **dict.fromkeys(("object", "flattened", "nested"), lambda value: isinstance(value, dict)),
}


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields
