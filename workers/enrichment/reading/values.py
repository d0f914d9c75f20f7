"""Writes JSON as text: one line for each value, with the value's path before it. Runs in a member of the pool."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from workers.enrichment.evidence import Particulars, Unreadable
from workers.enrichment.reading.particulars import of_json

_BETWEEN: Final = "\n\n"
MAX_PATH_CHARS: Final = 200
"""Cap on the characters of the path before a value. A longer path loses its beginning."""


def from_json(text: str, max_chars: int) -> tuple[str | None, str, Particulars]:
    """Return title, text and particulars of JSON. The text ends at the line that reaches `max_chars`.

    Raises Unreadable.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("its type is JSON, but its content is not") from None
    title, particulars = of_json(value)
    return title, lines(leaves(value), max_chars), particulars


def from_json_lines(text: str, max_chars: int) -> str:
    """Return the text of newline-delimited JSON, with a paragraph for each line. Raises Unreadable if no line is JSON.

    Lines that are not JSON are left out, because a log may end in the middle of a line.
    """
    paragraphs = []
    for line in text.split("\n"):
        try:
            paragraphs.append(lines(leaves(json.loads(line)), max_chars))
        except (ValueError, RecursionError):
            continue
        max_chars -= len(paragraphs[-1]) + len(_BETWEEN)
        if max_chars <= 0:
            break
    if not paragraphs:
        raise Unreadable("its type is lines of JSON, but no line is JSON")
    return _BETWEEN.join(paragraphs)


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value that is neither an object nor an array, and before it the path of names that lead to it."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend((below(path, key), member) for key, member in reversed(item.items()))
        elif isinstance(item, list):
            waiting.extend((path, member) for member in reversed(item))
        else:
            yield path, item


def below(path: str, name: str) -> str:
    """Return the path of a member. Only its last MAX_PATH_CHARS are kept, so that deep values stay small."""
    return f"{path} {name}".strip()[-MAX_PATH_CHARS:]


def lines(values: Iterable[tuple[str, Any]], max_chars: int) -> str:
    """Return a line for each value, with the value's path first. The line that reaches `max_chars` is the last one."""
    written: list[str] = []
    size = 0
    for path, value in values:
        written.append(f"{path}: {value}" if path else str(value))
        size += len(written[-1])
        if size >= max_chars:
            break
    return "\n".join(written)
