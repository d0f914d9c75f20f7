"""Escapes untrusted text for a terminal, because a terminal obeys control characters."""

from __future__ import annotations

import json
import unicodedata

_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of characters that move the cursor, reorder or hide text, or cannot be written at all."""


def harmless(text: str, kept: str = "") -> str:
    """Return the text with control characters as JSON escapes, except the characters in `kept`."""
    return "".join(_escaped(one) if one not in kept and unicodedata.category(one) in _OBEYED else one for one in text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"
