"""Typesets a text as a PDF: lines in Helvetica, in one or two columns, as in reports and leaflets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from bench.pdf_files import line, pdf

_MARGIN: Final = 60
_TOP: Final = 780
_LEADING: Final = 15
_LINES: Final = 48
"""Number of lines in a column."""
_CHARS: Final = {1: 84, 2: 42}
"""Number of characters that fill about one line, by the number of columns."""
_COLUMN: Final = 245
_SIZE: Final = {1: 11, 2: 10}


def typeset(text: str) -> bytes:
    """Return the PDF. Each line is a paragraph, except `#title …`, `#columns 2` and `#page`, which starts a page."""
    title, columns, chapters = "", 1, [""]
    for paragraph in text.splitlines():
        match paragraph.partition(" "):
            case "#title", _, rest:
                title = rest
            case "#columns", _, rest:
                columns = int(rest)
            case "#page", _, _:
                chapters.append("")
            case _:
                chapters[-1] += paragraph + "\n"
    pages = [page for chapter in chapters for page in _pages(chapter, columns)]
    return pdf(pages, info=f"/Title ({title})")


def _pages(chapter: str, columns: int) -> Iterator[str]:
    """Yield the content of each page that the text up to the next `#page` fills."""
    lines = [line for paragraph in chapter.splitlines() for line in textwrap.wrap(paragraph, _CHARS[columns]) or [""]]
    for start in range(0, len(lines), _LINES * columns):
        page = lines[start : start + _LINES * columns]
        yield "\n".join(_placed(number, text, columns) for number, text in enumerate(page) if text)


def _placed(number: int, text: str, columns: int) -> str:
    column, row = divmod(number, _LINES)
    return line(text, at=(_MARGIN + column * _COLUMN, _TOP - row * _LEADING), size=_SIZE[columns])
