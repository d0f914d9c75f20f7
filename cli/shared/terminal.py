"""Text for a terminal: tables, and untrusted text with escapes, because a terminal obeys control characters."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that move the cursor, reorder or hide text, or cannot be written at all."""


def table(rows: Sequence[Sequence[str]], names: int | None = None) -> list[str]:
    """Return the rows, of which the first is the header, as lines with two spaces between columns.

    The first `names` columns are aligned on the left and the others, which hold numbers, on the right; by default all
    are aligned on the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) if names is None else names
    return [
        "  ".join([*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])]).rstrip()
        for row in rows
    ]


def harmless(text: str, kept: str = "") -> str:
    """Return the text with control characters as JSON escapes, except the characters in `kept`."""
    return "".join(_escaped(one) if one not in kept and unicodedata.category(one) in _OBEYED else one for one in text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"
