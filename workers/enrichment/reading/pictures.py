"""Distinguishes pictures of text from other pages, and defines the seam to the program that reads pictures (OCR)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

READ_BY_OCR: Final = "ocr"
"""The value of `Particulars.read_by` for a text that a program read from pictures."""
_TYPES: Final = frozenset(
    {
        "image/png", "image/jpeg", "image/jpg", "image/tiff", "image/webp",
        "application/octet-stream", "binary/octet-stream", "",
    }
)  # fmt: skip
"""Media types under which a picture is read. Any other type contradicts the content."""
_FIRST_BYTES: Final = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)
"""Matches the first bytes of PNG (RFC 2083), JPEG (T.81), TIFF 6.0 and WebP (RFC 9649)."""


class Recogniser(Protocol):
    """Reads text from pictures."""

    def of_image(self, body: bytes) -> str:
        """Return the text of an image file. Raises Unreadable."""
        ...

    def of_pages(self, document: PdfDocument, numbers: Sequence[int]) -> Sequence[str]:
        """Return the texts of these pages, counted from 0; fewer texts if the last pages are not read.

        Raises Unreadable.
        """
        ...


class Postponed:
    """Remembers whether a page has pictures, and leaves the reading of pictures to another process."""

    def __init__(self) -> None:
        self.has_pictures = False

    def of_image(self, body: bytes) -> str:
        """Return no text."""
        self.has_pictures = True
        return ""

    def of_pages(self, document: PdfDocument, numbers: Sequence[int]) -> Sequence[str]:
        """Return no texts."""
        self.has_pictures = True
        return ()


def is_picture(body: bytes, media_type: str) -> bool:
    """True if the body is an image that may hold text, and its media type does not contradict."""
    return media_type in _TYPES and _FIRST_BYTES.match(body) is not None
