"""A PDF's text as a person would see it, by pdfium. Runs in a member of the pool, which may be killed.

What a reader does not see is taken out of each page before its text is read: text that is invisible, transparent, tiny,
off the page, or white where nothing dark is behind it. Invisible text over a picture stays: that is how scanned pages
carry what was read off them.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import pypdfium2
import pypdfium2.raw as pdfium

from workers.enrichment.evidence import Particulars, Unreadable
from workers.enrichment.particulars import MAX_TITLE_CHARS, doi_in, iso_date

MAX_PAGES: Final = 300
"""Whose text is read; a document may have more."""
MAX_OBJECTS: Final = 20_000
"""On one page; a page with more is a drawing, and is left out."""
MIN_SIZE: Final = 1.5
"""Of type, in points; nobody reads a smaller one."""

_DOI_CHARS: Final = 3000
"""Of the first page, in which a paper names its own DOI; further on are those of its references."""
_PALE: Final = 240
"""The darkest that white may be, of 255."""
_FAINT: Final = 13
"""Opacity of 255, about a twentieth."""
_HYPHENATED: Final = re.compile(r"(?<=[^\W\d_])[\ufffe\u00ad]\s*\n?|(?<=[^\W\d_])-\r?\n(?=[a-z])")
"""A word that is divided at the end of a line; pdfium marks some with a noncharacter."""
_DATE: Final = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")
_UNTITLED: Final = re.compile(r"untitled|.*\.(?:docx?|dvi|tex|indd|pdf|qxd)|Microsoft Word.*", re.IGNORECASE)

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


@dataclass(slots=True)
class _Behind:
    """What was painted so far, in the order of painting."""

    pictures: list[Box] = field(default_factory=list)
    dark: list[Box] = field(default_factory=list)


def read_pdf(body: bytes, max_chars: int) -> tuple[str | None, str, Particulars]:
    """Title, text and particulars. At most `max_chars` code points of text are read. Raises Unreadable."""
    try:
        with closing(pypdfium2.PdfDocument(body)) as document:
            pages: list[str] = []
            for text in _pages(document):
                pages.append(text)
                max_chars -= len(text)
                if max_chars <= 0:
                    break
            title = " ".join(document.get_metadata_value("Title").split())[:MAX_TITLE_CHARS]
            particulars = Particulars(_date(document), doi=doi_in(pages[0][:_DOI_CHARS]) if pages else None)
    except pypdfium2.PdfiumError as error:
        locked = getattr(error, "err_code", None) == pdfium.FPDF_ERR_PASSWORD
        raise Unreadable("it is a PDF with a password" if locked else "it is not a PDF that can be read") from None
    return (title if title and not _UNTITLED.fullmatch(title) else None), "\n\n".join(pages), particulars


def _date(document: pypdfium2.PdfDocument) -> str | None:
    made = _DATE.match(document.get_metadata_value("CreationDate"))
    return iso_date("-".join(part for part in made.groups() if part)) if made is not None else None


def _pages(document: pypdfium2.PdfDocument) -> Iterator[str]:
    """The text of each page. A page that is broken is left out."""
    for number in range(min(len(document), MAX_PAGES)):
        try:
            page = document[number]
        except pypdfium2.PdfiumError:
            continue
        with closing(page):
            if _remove_hidden(page):
                with closing(page.get_textpage()) as text:
                    yield _HYPHENATED.sub("", text.get_text_bounded()).replace("\r\n", "\n")


def _remove_hidden(page: pypdfium2.PdfPage) -> bool:
    """Take what nobody sees off the page. False: there is too much on it to look at."""
    left, bottom, right, top = page.get_cropbox()
    behind = _Behind()
    hidden = []
    for number, item in enumerate(page.get_objects(max_depth=5)):
        if number >= MAX_OBJECTS:
            return False
        box, scale = _placed(item)
        if item.type == pdfium.FPDF_PAGEOBJ_TEXT:
            off = box[2] <= left or box[0] >= right or box[3] <= bottom or box[1] >= top
            if off or _size(item) * scale < MIN_SIZE or _is_unseen(item, box, behind):
                hidden.append(item)
        elif item.type in (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_SHADING):
            behind.pictures.append(box)
        elif item.type == pdfium.FPDF_PAGEOBJ_PATH and not _is_pale(item):
            behind.dark.append(box)
    for item in hidden:
        page.remove_obj(item)
    return True


def _placed(item: pypdfium2.PdfObject) -> tuple[Box, float]:
    """Where it is on the page, and how much the forms around it stretch its height."""
    box, scale = item.get_bounds(), 1.0
    form = item.container
    while form is not None:
        matrix = form.get_matrix()
        box, scale = matrix.on_rect(*box), scale * max(abs(matrix.c), abs(matrix.d))
        form = form.container
    return box, scale


def _is_unseen(text: pypdfium2.PdfObject, box: Box, behind: _Behind) -> bool:
    """Whether it has no ink, or none that differs from what is behind it."""
    mode = pdfium.FPDFTextObj_GetTextRenderMode(text)
    if mode in (pdfium.FPDF_TEXTRENDERMODE_INVISIBLE, pdfium.FPDF_TEXTRENDERMODE_CLIP):
        return not _lies_on(box, behind.pictures)
    if mode == pdfium.FPDF_TEXTRENDERMODE_STROKE or not _is_pale(text):
        return False
    return not _lies_on(box, behind.dark) and not _lies_on(box, behind.pictures)


def _size(text: pypdfium2.PdfObject) -> float:
    """The height of a line, in units of whatever is around it."""
    size = ctypes.c_float()
    if not pdfium.FPDFTextObj_GetFontSize(text, size):
        return MIN_SIZE
    matrix = text.get_matrix()
    return float(size.value * max(abs(matrix.c), abs(matrix.d)))


def _is_pale(item: pypdfium2.PdfObject) -> bool:
    """Whether it is filled with white, or with next to nothing. A pattern counts as ink."""
    parts = [ctypes.c_uint() for _ in range(4)]
    if not pdfium.FPDFPageObj_GetFillColor(item, *parts):
        return False
    *colour, opacity = (part.value for part in parts)
    return opacity <= _FAINT or min(colour) >= _PALE


def _lies_on(box: Box, others: list[Box]) -> bool:
    """Whether the middle of the box lies on one of the others."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return any(left <= x <= right and bottom <= y <= top for left, bottom, right, top in others)
