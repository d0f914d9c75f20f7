"""Distinguishes pictures of text from other pages, and defines the interface of programs that read pictures (OCR)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

READ_BY_OCR: Final = "ocr"
"""The value of `Particulars.read_by` if a program read the text from pictures."""
_TYPES: Final = frozenset(
    {
        "image/png", "image/jpeg", "image/jpg", "image/tiff", "image/webp",
        "application/octet-stream", "binary/octet-stream", "",
    }
)  # fmt: skip
"""Media types under which a picture is read. Any other type contradicts the content, and the page is refused."""
_FIRST_BYTES: Final = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)
"""Matches the first bytes of PNG (RFC 2083), JPEG (T.81), TIFF 6.0 and WebP (RFC 9649)."""


class Recogniser(Protocol):
    """Reads text from pictures."""

    def of_image(self, body: bytes) -> str:
        """Return the text of an image file. Raises Unreadable."""
        ...

    def of_pages(self, document: PdfDocument, numbers: Sequence[int]) -> Sequence[str]:
        """Return the texts of the pages with these numbers, which count from 0.

        If the last pages are not read, return fewer texts. Raises Unreadable.
        """
        ...


class Postponed:
    """Remembers whether a page has pictures, and leaves the reading of pictures to another process."""

    def __init__(self) -> None:
        self.has_pictures = False

    def of_image(self, body: bytes) -> str:
        """Remember that there are pictures, and return no text."""
        self.has_pictures = True
        return ""

    def of_pages(self, document: PdfDocument, numbers: Sequence[int]) -> Sequence[str]:
        """Remember that there are pictures, and return no texts."""
        self.has_pictures = True
        return ()


def is_picture(body: bytes, media_type: str) -> bool:
    """True if the body is an image that may show text, and the media type does not contradict this."""
    return media_type in _TYPES and _FIRST_BYTES.match(body) is not None
