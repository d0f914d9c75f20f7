"""Texts from strangers, as both databases can store them.

PostgreSQL stores no NUL in text, and neither driver encodes a lone surrogate. A NUL or a lone surrogate becomes U+FFFD,
on the way into a row and in a comparison alike. So no name in a request or on a topic can fail a statement.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Dialect, String
from sqlalchemy.types import TypeDecorator

_REPLACEMENT = "\ufffd"
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def storable(text: str) -> str:
    """Return the text as both databases store it."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\x00", _REPLACEMENT)


class Name(TypeDecorator[str]):
    """A text of at most `length` characters. A longer text is cut."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self._most = length

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        """Return the value in the form that a statement needs: storable, and cut to the length."""
        return None if value is None else storable(value)[: self._most]


def to_json(value: Any) -> str:
    """Return compact JSON without NULs and lone surrogates, which the databases cannot store or search."""
    text = storable(_ENCODER.encode(value))
    return text.replace("\\u0000", _REPLACEMENT)
