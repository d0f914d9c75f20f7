r"""Regular expressions of the operator, run by RE2.

Python's `re` backtracks: an innocent pattern such as `(\w+\s?)+:` takes hours at a hostile prompt. Meanwhile no other
thread can run, so that no timer of the process could end the match. RE2 compiles to an automaton and reads each byte
once. RE2 has no look-around and no back-references; the reader of the rules' file reports patterns that use them.

One scan is linear, but a pattern such as `x.*y|x` scans to the end of the text for each of its matches. So a match is
sought within a window, and a match that is longer than the window may be cut or missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import re2

from workers.screening.matchers import Match

WINDOW: Final = 1024
"""Bytes of a window. A match may reach from one window into the next, so a match of at most this length is found
whole."""
_MAX_BYTES: Final = 8 * 1024 * 1024
"""Memory of one pattern's automaton."""
_one_byte = re.compile(r"(?<!\\)(?:\\\\)*\\C")


class PatternRefused(Exception):  # noqa: N818 - named after the event
    """The pattern cannot be used. The text names the reason and the fix."""


class Patterns:
    """Finds the matches of each pattern. Raises PatternRefused for a pattern that RE2 does not accept."""

    def __init__(self, patterns: Sequence[str], *, ignore_case: bool = False) -> None:
        self._patterns = [_compiled(pattern, ignore_case) for pattern in patterns]

    def matches(self, text: str) -> Iterator[Match]:
        """Yield the matches of all patterns, without empty matches."""
        data = text.encode("utf-8", "replace")
        for pattern in self._patterns:
            spans = _spans(pattern, data)
            for start, end in spans if len(data) == len(text) else _in_characters(data, spans):
                yield Match(start, end, "regex")


def _compiled(pattern: str, ignore_case: bool) -> Any:
    if _one_byte.search(pattern):
        raise PatternRefused(r"`\C` matches half a character; use `.`")
    options = re2.Options()
    options.max_mem, options.log_errors, options.never_capture = _MAX_BYTES, False, True
    options.case_sensitive = not ignore_case
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        raise PatternRefused(f"RE2 does not take it ({_reason(error)}); RE2 has no look-around and no \\1") from None
    except UnicodeEncodeError:
        raise PatternRefused("has half a surrogate pair, which is no character") from None
    if compiled.search(b"") is not None:
        raise PatternRefused("matches the empty text, and so every text; ask for at least one character")
    return compiled


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else b""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _spans(pattern: Any, data: bytes) -> Iterator[tuple[int, int]]:
    """Return the byte offsets of the matches. Each step reads at most two windows, and moves forward."""
    place = 0
    while place < len(data):
        found = pattern.search(data, place, min(len(data), place + 2 * WINDOW))
        start, end = found.span() if found is not None else (place + WINDOW, place + WINDOW)
        if start >= place + WINDOW:
            place = start  # a match that begins in the second half may be cut: it is sought again from its beginning
        elif start == end:
            place = end + 1
        else:
            yield start, end
            place = end
        while place < len(data) and data[place] & 0xC0 == 0x80:  # the next search begins at a whole character
            place += 1


def _in_characters(data: bytes, spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Convert ascending byte offsets into offsets of characters."""
    done = characters = 0
    for start, end in spans:
        first = characters + len(data[done:start].decode())
        characters = first + len(data[start:end].decode())
        done = end
        yield first, characters
