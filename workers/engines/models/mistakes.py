"""Mistakes of the registry's file, each with its line, its field and the fix."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from schemas.operator_error import OperatorError

_MOST_SHOWN = 64
_NAME_SHOWN = 64
_MOST_COMPARED = 256
"""Cap on the known names that an unknown name is compared with.

Comparing a thousand unknown names with a thousand known ones would take minutes.
"""


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
    """Return a name of the file in quotes, printable and cut to 64 characters."""
    text = str(name)
    plain = "".join(each if each.isprintable() else "?" for each in text[:_NAME_SHOWN])
    return f'"{plain}…"' if len(text) > _NAME_SHOWN else f'"{plain}"'


def listed(names: Collection[str]) -> str:
    """Return up to twelve names as one phrase."""
    shown = [quoted(name) for name in [*names][:12]]
    return ", ".join(shown) + (" and more" if len(names) > len(shown) else "") if shown else "none"


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
_LONGEST_VALUE: Final = 200
"""The maximum number of lines of one value. After a longer value, the lines of later fields stay unknown."""
_DEEPEST: Final = 8
"""The maximum number of names in a path.

The registry's paths have at most five names; a hostile heading may have a hundred thousand.
"""

FieldPath = tuple[str, ...]


class TomlLines:
    """Maps the path of each field of a valid document to the field's line."""

    def __init__(self, text: str) -> None:
        self._lines: dict[FieldPath, int] = {}
        table: FieldPath = ()
        for number, statement in _statements(text.split("\n")):
            found = tomllib.loads(statement)
            if statement.lstrip().startswith("["):
                table = max(_paths(found), key=len)
                found_at = [table[:length] for length in range(1, len(table) + 1)]
            else:
                found_at = [(*table, *path) for path in _paths(found)]
            for path in found_at:
                self._lines.setdefault(path, number)

    def of(self, path: Sequence[str | int]) -> int | None:
        """Return the line of this field, or of the nearest table around the field; None if neither line is known."""
        names = tuple(str(part) for part in path)
        return next((self._lines[names[:end]] for end in range(len(names), 0, -1) if names[:end] in self._lines), None)


def _statements(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield each table heading and each assignment with its first line's number.

    Each heading or assignment is valid TOML by itself.
    """
    start = 0
    while start < len(lines):
        end = start + 1
        while not _is_whole(statement := "\n".join(lines[start:end])):
            end += 1
            if end > len(lines) or end - start > _LONGEST_VALUE:
                return
        if statement.strip() and not statement.lstrip().startswith("#"):
            yield start + 1, statement
        start = end


def _is_whole(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _paths(found: Mapping[str, Any], above: FieldPath = ()) -> Iterator[FieldPath]:
    """Yield the paths of all fields of a table, and of the tables inside it."""
    for name, value in found.items():
        path = (*above, name)
        yield path
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and len(path) < _DEEPEST:
            yield from _paths(inner, path)
