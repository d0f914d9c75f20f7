"""Line numbers of a TOML document's fields. Python's parser gives line numbers only for syntax errors."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_LONGEST_VALUE: Final = 200
"""The maximum number of lines of one value. After a longer value, the lines of later fields stay unknown."""
_DEEPEST: Final = 8
"""The maximum number of names in a path.

The registry's paths have at most five names; a hostile heading may have a hundred thousand.
"""

Path = tuple[str, ...]


class TomlLines:
    """Maps the path of each field of a valid document to the field's line."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = {}
        table: Path = ()
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


def _paths(found: Mapping[str, Any], above: Path = ()) -> Iterator[Path]:
    """Yield the paths of all fields of a table, and of the tables inside it."""
    for name, value in found.items():
        path = (*above, name)
        yield path
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and len(path) < _DEEPEST:
            yield from _paths(inner, path)
