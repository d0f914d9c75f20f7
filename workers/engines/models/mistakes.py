"""Mistakes of the registry's file, each with its line, its field and the fix; and names as messages show them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from schemas.operator_error import OperatorError

_MOST_SHOWN = 64
_NAME_SHOWN = 64
_NAMES_SHOWN = 8
_MOST_COMPARED = 256
"""Cap on the known names that an unknown name is compared with.

Comparing a thousand unknown names with a thousand known ones would take minutes.
"""
_UNUSUAL = re.compile(r"[^\w .:/@+-]")
"""A character that no name of a model needs: a mark of a shell, of HTML or of Markdown, or an invisible one."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake. `field` is the path in the file, `line` is None if the file as a whole is wrong."""

    line: int | None
    field: str
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"line {self.line}" if self.line else "", self.field, self.reason)))


class RegistryRefused(OperatorError):  # noqa: N818 - named after the event
    """The registry's file has mistakes, so none of its models is used."""

    def __init__(self, path: Path, mistakes: Sequence[Mistake]) -> None:
        self.path = path
        self.mistakes = tuple(mistakes[:_MOST_SHOWN])
        more = f"\n  and {len(mistakes) - _MOST_SHOWN} more" if len(mistakes) > _MOST_SHOWN else ""
        super().__init__(f"{path} is no model registry:" + "".join(f"\n  {each}" for each in self.mistakes) + more)


def quoted(name: object) -> str:
    """Return a name in quotes, cut to 64 characters, with `?` for characters that are unusual in names."""
    text = str(name)
    plain = _UNUSUAL.sub("?", text[:_NAME_SHOWN])
    return f'"{plain}…"' if len(text) > _NAME_SHOWN else f'"{plain}"'


def listed(names: Collection[str]) -> str:
    """Return the first eight names, quoted, as one phrase."""
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(map(quoted, islice(names, _NAMES_SHOWN)))
    return (shown + (f" and {more} more" if more > 0 else "")) or "none"


def nearest(name: str, known: Collection[str]) -> str:
    """Return the fix for an unknown name: the most similar known name, or else all known names."""
    close = get_close_matches(name[:_NAME_SHOWN], islice(known, _MOST_COMPARED), 1)
    return f"did you mean {quoted(close[0])}?" if close else f"there are: {listed(known)}"


def reasons(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path below the table, and the text, of each of pydantic's errors.

    No text contains a value of the file.
    """
    for details in error.errors(include_url=False, include_input=False, include_context=False):
        path = tuple(str(part) for part in details["loc"])
        yield path, _reason(details, path, model)


def _reason(details: Mapping[str, Any], path: tuple[str, ...], model: type[BaseModel]) -> str:
    kind, message = details["type"], str(details["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        return "is missing; add it"
    if kind == "extra_forbidden":
        return f"is not known here: {nearest(path[-1], _fields_at(model, path[:-1]))}"
    if kind == "string_pattern_mismatch":
        return "has characters that are not allowed there; use letters, digits and . _ : / @ + -"
    return message.replace("Input should be", "must be").replace("Input should have", "must have")


def _fields_at(model: type[BaseModel], path: tuple[str, ...]) -> Collection[str]:
    """Return the names of the fields of the model at this path."""
    for name in path:
        field = model.model_fields.get(name)
        inner = [each for each in (field.annotation, *_arguments(field.annotation)) if _is_model(each)] if field else []
        if not inner:
            return ()
        model = inner[0]
    return tuple(model.model_fields)


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return tuple(getattr(annotation, "__args__", ()))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


# -- Line numbers of a TOML document's fields. Python's parser gives line numbers only for syntax errors --
_LONGEST_VALUE = 200
"""The maximum number of lines of one value. After a longer value, the lines of later fields stay unknown."""

FieldPath = tuple[str, ...]


class TomlLines:
    """Maps the path of each field of a valid document to the field's first line."""

    def __init__(self, text: str) -> None:
        self._lines: dict[FieldPath, int] = {}
        table: FieldPath = ()
        statement, first = "", 1
        for number, line in enumerate(text.split("\n"), 1):
            statement += f"{line}\n"
            paths = _paths_in(statement)
            if paths is None and number - first < _LONGEST_VALUE:
                continue  # a value goes on in the next line
            if paths is None:
                return
            if paths and statement.lstrip().startswith("["):
                table = max(paths, key=len)
                paths = [table[:length] for length in range(1, len(table) + 1)]
            else:
                paths = [(*table, *path) for path in paths]
            for path in paths:
                self._lines.setdefault(path, first)
            statement, first = "", number + 1

    def of(self, path: Sequence[str | int]) -> int | None:
        """Return the line of this field, or of the nearest table around the field; None if neither line is known."""
        names = tuple(str(part) for part in path)
        return next((self._lines[names[:end]] for end in range(len(names), 0, -1) if names[:end] in self._lines), None)


def _paths_in(statement: str) -> list[FieldPath] | None:
    """Return the paths of a heading or an assignment; None for a text that is no TOML by itself."""
    try:
        return [*_paths(tomllib.loads(statement))]
    except (ValueError, RecursionError):
        return None


def _paths(found: Mapping[str, Any], above: FieldPath = ()) -> Iterator[FieldPath]:
    """Yield the paths of all fields of a table, and of the tables inside it."""
    for name, value in found.items():
        path = (*above, name)
        yield path
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            yield from _paths(inner, path)
