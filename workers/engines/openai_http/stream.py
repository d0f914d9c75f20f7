"""Answers that come piece by piece, as server-sent events (WHATWG HTML, section 9.2).

Each API puts its events together to the JSON of a plain answer, which the API's reader of plain answers then reads. So
a streamed answer has the text, finish reason, calls, usage and failures of the plain one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from io import StringIO
from typing import Any, Final

CONTENT_TYPE: Final = "text/event-stream"
DONE: Final = b"[DONE]"
"""The event with which OpenAI's API and its imitators end a stream."""
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class EventCutter:
    """Cuts a stream into the data of its events, wherever the pieces of the stream begin and end."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The pieces of the line that has no end yet."""
        self._data: list[bytes] = []
        """The lines of the event that has no end yet."""
        self._is_after_cr = False
        self.pending = 0
        """The number of bytes since the last end of an event."""

    def events(self, piece: bytes) -> Iterator[bytes]:
        """Take the next piece, and yield the data of each event that ends in it. Comments and other fields go away."""
        if self._is_after_cr:  # the line has ended there already, and CRLF is one end
            piece = piece.removeprefix(b"\n")
        self._is_after_cr = piece.endswith(b"\r")
        first, *others = _LINE_END.split(piece)
        self._line.append(first)
        self.pending += len(piece)
        for line in others:
            yield from self._ended(b"".join(self._line))
            self._line = [line]

    def _ended(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(b"data:"):
            self._data.append(line[len(b"data:") :].removeprefix(b" "))
        elif not line and self._data:
            yield b"\n".join(self._data)
            self._data, self.pending = [], 0


class AnswerStream(ABC):
    """One answer while it comes, in the events of one API."""

    def __init__(self) -> None:
        self._text = StringIO()
        self.is_whole = False
        """True once nothing but the end of the stream is missing."""
        self.size = 0
        """The number of bytes and characters that are kept, counted like the JSON of a plain answer."""

    @abstractmethod
    def take(self, event: bytes) -> None:
        """Take the next event. Raises ValueError for an event without the API's form."""

    @abstractmethod
    def plain(self) -> dict[str, Any]:
        """Return the answer so far as the JSON of a plain answer."""

    @property
    def text(self) -> str:
        """The text so far, without the reasoning, as the whole answer will begin."""
        return self._text.getvalue()
