"""Mistakes of the registry's file, each with its line, its field and the fix."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

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


class RegistryRefused(Exception):  # noqa: N818 - named after the event
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
