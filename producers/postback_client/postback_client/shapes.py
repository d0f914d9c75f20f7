"""Reads JSON into dataclasses. Unknown members are ignored, so that an older client reads a newer gateway's answers."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from postback_client.errors import UnreadableAnswer

Shape = TypeVar("Shape")


class _Unfit(Exception):  # noqa: N818 - private, becomes UnreadableAnswer
    """A value does not have its member's type."""


def parsed(content: bytes | str) -> Any:
    """Return the value of a JSON text. Raises UnreadableAnswer; the error shows none of the content."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise UnreadableAnswer("the content is not JSON") from None


def read(kind: type[Shape], document: object) -> Shape:
    """Return an instance of a dataclass from a JSON object. Raises UnreadableAnswer; the error names the member."""
    try:
        return _instance(kind, document)
    except _Unfit as unfit:
        raise UnreadableAnswer(f"{kind.__name__}: {unfit}") from None


def _instance(kind: type[Shape], document: object) -> Shape:
    if not isinstance(document, Mapping):
        raise _Unfit("is not an object")
    members: dict[str, Any] = {}
    for name, hint, required in _fields(cast(Any, kind)):
        if name == "raw":
            members[name] = document
        elif name in document and (document[name] is not None or required):
            try:
                members[name] = _value(hint, document[name])
            except _Unfit as unfit:
                raise _Unfit(f"{name} {unfit}") from None
        elif required:
            raise _Unfit(f"{name} is missing")
    return kind(**members)


@lru_cache(maxsize=64)
def _fields(kind: Any) -> list[tuple[str, Any, bool]]:
    """Return each member's name and type, and whether it has no default."""
    hints = get_type_hints(kind)
    absent = dataclasses.MISSING
    return [
        (each.name, hints[each.name], each.default is absent and each.default_factory is absent)
        for each in dataclasses.fields(kind)
    ]


def _value(hint: Any, value: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _value(next(each for each in get_args(hint) if each is not types.NoneType), value)
    if origin is tuple:
        if not isinstance(value, list):
            raise _Unfit("is not an array")
        return tuple(_value(get_args(hint)[0], each) for each in value)
    if origin is not None:
        if not isinstance(value, dict):
            raise _Unfit("is not an object")
        return {name: _value(get_args(hint)[1], each) for name, each in value.items()}
    if dataclasses.is_dataclass(hint):
        return _instance(hint, value)  # type: ignore[arg-type]  # mypy takes the class for an instance
    if hint is float and type(value) in (int, float):
        return _number(value)
    if hint is not Any and type(value) is not hint:
        raise _Unfit(f"is not of type {hint.__name__}")
    return value


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _Unfit("is too large") from None
