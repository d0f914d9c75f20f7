"""Reads a PDF's text as a person would see it, by pdfium. Runs in a member of the pool, which may be killed.

Before a page is read, its unseen text is removed: invisible, transparent or tiny text, text off the page, and white
text with nothing dark behind it. Invisible text over a picture stays, since scanned pages contain their
recognised text in this form. A page that is a picture without text is a scan, and is left to a `Recogniser`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, pairwise
from statistics import median
from typing import Any, Final

import pypdfium2
import pypdfium2.raw as pdfium

from workers.enrichment.evidence import Particulars, Unreadable
from workers.enrichment.reading.particulars import document_title, doi_in, iso_date
from workers.enrichment.reading.pictures import READ_BY_OCR, Recogniser

MAX_PAGES: Final = 300
"""Cap on the number of a document's pages that are read."""
MAX_OBJECTS: Final = 30_000
"""Cap on a document's texts, lines and pictures; pages beyond the cap are not read. A printed page has about 200."""
MAX_PAGE_OBJECTS: Final = 10_000
"""Cap on the objects of a page; a page with more objects is a drawing, and is left out."""
MIN_SIZE: Final = 1.5
"""The smallest readable type, in points."""

_DOI_CHARS: Final = 3000
"""The DOI of the document is looked for in this many characters of the first page; later DOIs belong to references."""
_PALE: Final = 240
"""A colour counts as white if each of its channels has at least this value, out of 255."""
_FAINT: Final = 13
"""The highest opacity, out of 255, that counts as transparent: about a twentieth."""
_HYPHENATED: Final = re.compile(r"(?<=[^\W\d_])[\x02\ufffe\u00ad]\s*\n?|(?<=[^\W\d_])-\r?\n(?=[a-z])")
"""Matches the hyphen of a word divided at a line's end; pdfium writes some hyphens as a control character."""
_STAMP_CHARS: Final = 100
"""A page with this many characters is no scan. A scan may have a few, such as an archive's stamp or a page number."""
_SCAN_SHARE: Final = 0.5
"""A page is a scan only if pictures cover at least this share of its area."""
_DATE: Final = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")

Box = tuple[float, float, float, float]
"""The left, bottom, right and top edges of an area, in points."""


_MIN_ROWS: Final = 4
"""The least rows of columns that are read one after the other."""
_MIN_GAP_POINTS: Final = 8.0
_MIN_COLUMN_POINTS: Final = 120.0
"""The least width of the usual row of a column of prose."""
_MAX_RECTS: Final = 3000
_FORM_DEPTH: Final = 50
"""Depth to which nested forms are searched; pdfium itself reads text less deep."""
_MAX_BEHIND: Final = 300
"""Cap on the dark areas, and on the pictures, that are kept for a page; a page has a few."""
_MIN_AREA_POINTS: Final = 4.0
"""Least width and height of an area on which text may stand; a thinner area is a line."""


@dataclass(frozen=True, slots=True)
class _Item:
    """An object that is painted on a page."""

    handle: Any
    kind: int
    box: Box
    scale: float
    """The factor by which the forms around the object stretch its height."""
    form: Any
    """The form that contains the object; None if the page contains the object directly."""


@dataclass(slots=True)
class _Behind:
    """The areas that have been painted so far, in the order of painting."""

    pictures: list[Box] = field(default_factory=list)
    dark: list[Box] = field(default_factory=list)

    def add(self, item: _Item) -> None:
        """Keep the item's area if text may stand on it."""
        areas = self.dark if item.kind == pdfium.FPDF_PAGEOBJ_PATH else self.pictures
        left, bottom, right, top = item.box
        large = right - left >= _MIN_AREA_POINTS and top - bottom >= _MIN_AREA_POINTS
        if large and len(areas) < _MAX_BEHIND and not (areas is self.dark and _is_pale(item.handle)):
            areas.append(item.box)


def read_pdf(body: bytes, max_chars: int, recogniser: Recogniser | None = None) -> tuple[str | None, str, Particulars]:
    """Return title, text and particulars. The text ends with the page that reaches `max_chars` code points.

    Raises Unreadable. Without a `recogniser`, scans have no text.
    """
    try:
        with closing(pypdfium2.PdfDocument(body)) as document:
            pages: list[str] = []
            scans: dict[int, int] = {}  # maps a page's place in `pages` to its number in the document
            for number, text, is_scan in _pages(document):
                if is_scan:
                    scans[len(pages)] = number
                pages.append(text)
                max_chars -= len(text)
                if max_chars <= 0:
                    break
            texts = recogniser.of_pages(document, list(scans.values())) if recogniser is not None and scans else ()
            read = {place: text for place, text in zip(scans, texts, strict=False) if text}
            pages = [read.get(place, text) for place, text in enumerate(pages)]
            title = document_title(document.get_metadata_value("Title"))
            doi = doi_in(pages[0][:_DOI_CHARS]) if pages else None
            particulars = Particulars(_date(document), doi=doi, read_by=READ_BY_OCR if read else None)
    except pypdfium2.PdfiumError as error:
        locked = getattr(error, "err_code", None) == pdfium.FPDF_ERR_PASSWORD
        raise Unreadable("it is a PDF with a password" if locked else "it is not a PDF that can be read") from None
    return title, "\n\n".join(pages), particulars


def _date(document: pypdfium2.PdfDocument) -> str | None:
    made = _DATE.match(document.get_metadata_value("CreationDate"))
    return iso_date("-".join(part for part in made.groups() if part)) if made is not None else None


def _pages(document: pypdfium2.PdfDocument) -> Iterator[tuple[int, str, bool]]:
    """Yield each page's number, the page's text, and whether the page is a scan. Leave out broken pages."""
    left = MAX_OBJECTS
    for number in range(min(len(document), MAX_PAGES)):
        try:
            page = document[number]
        except pypdfium2.PdfiumError:
            continue
        with closing(page):
            items = list(islice(_items(page.raw), MAX_PAGE_OBJECTS + 1))
            left -= len(items)
            if left < 0:
                return
            if len(items) <= MAX_PAGE_OBJECTS:
                _remove_hidden(page, items)
                with closing(page.get_textpage()) as textpage:
                    parts = [textpage.get_text_bounded(*box) for box in _parts(page, textpage)]
                    text = "\n".join(filter(None, parts)) or textpage.get_text_bounded()
                text = _HYPHENATED.sub("", text).replace("\r\n", "\n")
                yield number, text, len(text.strip()) < _STAMP_CHARS and _is_covered_by_pictures(page, items)


def _parts(page: pypdfium2.PdfPage, textpage: pypdfium2.PdfTextPage) -> list[Box]:
    """Return the areas of a page that has columns, in the order in which a person reads them; none for other pages.

    A program may draw columns of prose row by row. Rows of a table are narrower, or a cell crosses the gap between
    columns, so they stay rows.
    """
    left, bottom, right, top = page.get_cropbox()
    count = textpage.count_rects()
    if not 2 * _MIN_ROWS <= count <= _MAX_RECTS:
        return []
    rects: list[Box] = [textpage.get_rect(number) for number in range(count)]
    gaps = [(one, other) for one, other in pairwise(rects) if _is_beside(one, other)]
    edges = [left]
    for one, other in gaps:
        x = (one[2] + other[0]) / 2
        rows = [pair for pair in gaps if pair[0][2] <= x <= pair[1][0]]
        if len(rows) >= _MIN_ROWS and x > edges[-1] and not any(a[2] < edges[-1] < b[0] for a, b in rows):
            edges.append(x)
    if len(edges) == 1:
        return []
    low = min(min(one[1], other[1]) for one, other in gaps)
    high = max(max(one[3], other[3]) for one, other in gaps)
    inside = [rect for rect in rects if rect[1] >= low and rect[3] <= high]
    columns = list(pairwise([*edges, right]))
    for start, end in columns:
        widths = [rect[2] - rect[0] for rect in inside if start <= rect[0] < end]
        if len(widths) < _MIN_ROWS or median(widths) < _MIN_COLUMN_POINTS:
            return []
    if any(rect[0] < edge < rect[2] for rect in inside for edge in edges[1:]):
        return []
    return [(left, high, right, top), *((start, low, end, high) for start, end in columns), (left, bottom, right, low)]


def _is_beside(one: Box, other: Box) -> bool:
    """True if `other` stands on the row of `one`, behind a gap that is wider than one between words."""
    return other[0] - one[2] >= _MIN_GAP_POINTS and other[1] < one[3] and one[1] < other[3]


def _is_covered_by_pictures(page: pypdfium2.PdfPage, items: list[_Item]) -> bool:
    """True if pictures cover most of the page. A scanner may store a page as many strips."""
    width, height = page.get_size()
    boxes = [item.box for item in items if item.kind == pdfium.FPDF_PAGEOBJ_IMAGE]
    covered = sum((right - left) * (top - bottom) for left, bottom, right, top in boxes)
    return bool(covered >= _SCAN_SHARE * width * height > 0)


def _items(parent: Any, depth: int = 0, around: pypdfium2.PdfMatrix | None = None) -> Iterator[_Item]:
    """Yield all items in the order in which they are painted, with their places on the page.

    `PdfPage.get_objects` would take ten times as long, since it makes an object with a finalizer for each item.
    """
    count, get = (
        (pdfium.FPDFFormObj_CountObjects, pdfium.FPDFFormObj_GetObject)
        if depth
        else (pdfium.FPDFPage_CountObjects, pdfium.FPDFPage_GetObject)
    )
    for number in range(count(parent)):
        handle = get(parent, number)
        kind = pdfium.FPDFPageObj_GetType(handle)
        if kind == pdfium.FPDF_PAGEOBJ_FORM:
            if depth < _FORM_DEPTH:
                inner = _matrix(handle)
                yield from _items(handle, depth + 1, inner if around is None else inner.multiply(around))
            continue
        box = _box(handle)
        if around is None:
            yield _Item(handle, kind, box, 1.0, None)
        else:
            yield _Item(handle, kind, around.on_rect(*box), max(abs(around.c), abs(around.d)), parent)


def _box(handle: Any) -> Box:
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    if not pdfium.FPDFPageObj_GetBounds(handle, left, bottom, right, top):
        return (0.0, 0.0, 0.0, 0.0)
    return (left.value, bottom.value, right.value, top.value)


def _matrix(handle: Any) -> pypdfium2.PdfMatrix:
    matrix = pdfium.FS_MATRIX()
    found = pdfium.FPDFPageObj_GetMatrix(handle, matrix)
    return pypdfium2.PdfMatrix.from_raw(matrix) if found else pypdfium2.PdfMatrix()


def _remove_hidden(page: pypdfium2.PdfPage, items: list[_Item]) -> None:
    """Remove unseen text from the page."""
    left, bottom, right, top = page.get_cropbox()
    behind = _Behind()
    hidden = []
    for item in items:
        if item.kind != pdfium.FPDF_PAGEOBJ_TEXT:
            behind.add(item)
            continue
        box = item.box
        off = box[2] <= left or box[0] >= right or box[3] <= bottom or box[1] >= top
        if off or _size(item) < MIN_SIZE or _is_unseen(item, behind):
            hidden.append(item)
    for item in hidden:
        if item.form is None:
            pdfium.FPDFPage_RemoveObject(page, item.handle)
        else:
            pdfium.FPDFFormObj_RemoveObject(item.form, item.handle)
        pdfium.FPDFPageObj_Destroy(item.handle)


def _is_unseen(text: _Item, behind: _Behind) -> bool:
    """True if the text is invisible, or if it is pale and no picture or dark area is behind it."""
    mode = pdfium.FPDFTextObj_GetTextRenderMode(text.handle)
    if mode in (pdfium.FPDF_TEXTRENDERMODE_INVISIBLE, pdfium.FPDF_TEXTRENDERMODE_CLIP):
        return not _lies_on(text.box, behind.pictures)
    if mode == pdfium.FPDF_TEXTRENDERMODE_STROKE or not _is_pale(text.handle):
        return False
    return not _lies_on(text.box, behind.dark) and not _lies_on(text.box, behind.pictures)


def _size(text: _Item) -> float:
    """Return the size of the text's letters on the page, in points."""
    size = ctypes.c_float()
    if not pdfium.FPDFTextObj_GetFontSize(text.handle, size):
        return MIN_SIZE
    matrix = _matrix(text.handle)
    return float(size.value * max(abs(matrix.c), abs(matrix.d)) * text.scale)


def _is_pale(handle: Any) -> bool:
    """True if the object's fill is white or nearly transparent. A pattern counts as visible."""
    parts = [ctypes.c_uint() for _ in range(4)]
    if not pdfium.FPDFPageObj_GetFillColor(handle, *parts):
        return False
    *colour, opacity = (part.value for part in parts)
    return opacity <= _FAINT or min(colour) >= _PALE


def _lies_on(box: Box, others: list[Box]) -> bool:
    """True if the middle of the box lies on one of the boxes in `others`."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return any(left <= x <= right and bottom <= y <= top for left, bottom, right, top in others)
