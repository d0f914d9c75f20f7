"""Reads documents, presentations and workbooks of Office (ECMA-376). Runs in a member of the pool.

The files are ZIP archives of XML. Documents and presentations are read piece by piece while they are unpacked, so a ZIP
bomb takes time but no memory. Workbooks are read by the library calamine, which knows the formats of numbers and dates.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Final
from xml.etree.ElementTree import ParseError

from defusedxml.ElementTree import DefusedXMLParser, fromstring
from python_calamine import CalamineError, CalamineWorkbook, SheetVisibleEnum

from workers.enrichment.evidence import Particulars, Unreadable
from workers.enrichment.reading.particulars import document_title, iso_date

ZIP: Final = b"PK\x03\x04"
MAX_UNPACKED_BYTES: Final = 32 * 1024 * 1024
"""Cap on the bytes of XML that are read from a document or presentation; a printed page has about 20 kB."""
_TYPES: Final = (
    "application/vnd.openxmlformats-officedocument.", "application/vnd.ms-", "application/msword", "application/zip",
    "application/octet-stream", "binary/octet-stream",
)  # fmt: skip
"""Prefixes of the media types under which an Office file is read. A file without a type is also read."""
_CHUNK_BYTES: Final = 64 * 1024
_CORE_BYTES: Final = 64 * 1024

_DOCUMENT: Final = re.compile(r"word/document\d{0,6}\.xml")
_NOTES: Final = re.compile(r"word/(?:foot|end)notes\.xml")
_SLIDE: Final = re.compile(r"ppt/slides/slide(\d{1,6})\.xml")
_WORKBOOK: Final = re.compile(r"xl/workbook\d{0,6}\.(?:xml|bin)")
_CORE: Final = "docProps/core.xml"
_DC: Final = "{http://purl.org/dc/elements/1.1/}"
_DCTERMS: Final = "{http://purl.org/dc/terms/}"
_UNSEEN: Final = frozenset({"del", "moveFrom", "Fallback"})
"""Elements that a reader does not see: deleted text, the old place of moved text, and copies for older programs."""
_OFF: Final = frozenset({"0", "false", "off"})
_BROKEN: Final = (
    zipfile.BadZipFile, zlib.error, ParseError, CalamineError, EOFError, ValueError, LookupError, OSError, RuntimeError,
)  # fmt: skip
"""The errors of `zipfile`, expat, defusedxml and calamine.

RuntimeError is raised for an encrypted or oddly packed part.
"""


def is_office(body: bytes, media_type: str) -> bool:
    """True for a ZIP archive whose media type does not contradict an Office file."""
    return body.startswith(ZIP) and (not media_type or media_type.startswith(_TYPES))


def read_office(body: bytes, max_chars: int) -> tuple[str | None, str, Particulars]:
    """Return title, text and particulars. The text ends at the line that reaches `max_chars` code points.

    Raises Unreadable.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            text = _text(body, archive, max_chars)
            title, particulars = _core(archive)
    except _BROKEN:
        raise Unreadable("it is a ZIP archive that cannot be read, or has a password") from None
    return title, text, particulars


def _text(body: bytes, archive: zipfile.ZipFile, max_chars: int) -> str:
    names = archive.namelist()
    if any(map(_WORKBOOK.fullmatch, names)):
        return "\n".join(_up_to(max_chars, _rows(body)))
    slides = sorted((int(found[1]), found[0]) for found in map(_SLIDE.fullmatch, names) if found is not None)
    parts = [name for pattern in (_DOCUMENT, _NOTES) for name in names if pattern.fullmatch(name)]
    parts += [name for _, name in slides]
    if not parts:
        raise Unreadable("it is a ZIP archive, which is not read")
    return _Text(max_chars).of(archive, parts)


def _up_to(max_chars: int, lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line
        max_chars -= len(line)
        if max_chars <= 0:
            return


def _core(archive: zipfile.ZipFile) -> tuple[str | None, Particulars]:
    """Return the title and the date of creation, each only if the file has a valid one."""
    try:
        with archive.open(_CORE) as part:
            core = fromstring(part.read(_CORE_BYTES))
    except _BROKEN:
        return None, Particulars()
    created = iso_date(core.findtext(f"{_DCTERMS}created"))
    return document_title(core.findtext(f"{_DC}title") or ""), Particulars(created)


# -- workbooks -------------------------------------------------------------------------------------------------------


def _rows(body: bytes) -> Iterator[str]:
    """Yield the name of each sheet that a reader sees, and a line for each row with values."""
    workbook = CalamineWorkbook.from_filelike(io.BytesIO(body))
    for sheet in workbook.sheets_metadata:
        if sheet.visible == SheetVisibleEnum.Visible:
            yield f"\n{sheet.name}"
            for row in workbook.get_sheet_by_name(sheet.name).iter_rows():
                if any(cell != "" for cell in row):
                    yield " | ".join(map(_cell, row)).strip(" |")


def _cell(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


# -- documents and presentations -------------------------------------------------------------------------------------


class _Enough(Exception):  # noqa: N818 - named after the event
    """The text has reached its cap: the rest of the part is not read."""


class _Text:
    """The target of an XML parser: collects text, one line for each paragraph and each row of a table.

    WordprocessingML and DrawingML have the same names for paragraphs, runs, breaks and tables.
    """

    def __init__(self, max_chars: int) -> None:
        self._left_chars = max_chars
        self._left_bytes = MAX_UNPACKED_BYTES
        self._written: list[str] = []
        self._is_text = self._is_hidden = self._is_first = False
        self._unseen = self._cells = 0
        """How many elements are open that a reader does not see, and how many table cells are open."""

    def of(self, archive: zipfile.ZipFile, parts: list[str]) -> str:
        """Return the text of these parts, until a cap is reached. Raises the errors of `zipfile` and of the parser."""
        for name in parts:
            try:
                self._read(archive, name)
            except _Enough:
                self._unseen = self._cells = 0
            self._written.append("\n\n")
        return "".join(self._written)

    def _read(self, archive: zipfile.ZipFile, name: str) -> None:
        parser = DefusedXMLParser(target=self)
        with archive.open(name) as part:
            for chunk in iter(partial(part.read, _CHUNK_BYTES), b""):
                parser.feed(chunk)
                self._left_bytes -= len(chunk)
                if self._left_bytes < 0 or self._left_chars < 0:
                    raise _Enough
        parser.close()

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        name = tag.rpartition("}")[2]
        if name == "sld" and attributes.get("show") in _OFF:
            raise _Enough
        if name in _UNSEEN:
            self._unseen += 1
        elif name == "r":
            self._is_hidden = False
        elif name == "vanish":
            self._is_hidden = not any(value in _OFF for value in attributes.values())
        elif name == "tr":
            self._is_first = True
        elif name == "tc":
            self._cells += 1
            self._written.append("" if self._is_first else " | ")
            self._is_first = False
        self._is_text = name == "t" and not self._is_hidden and not self._unseen

    def end(self, tag: str) -> None:
        """End an element."""
        name = tag.rpartition("}")[2]
        if name in _UNSEEN:
            self._unseen -= 1
        elif name == "tc":
            self._cells -= 1
            while self._written[-1] == " ":
                self._written.pop()
        elif name in ("br", "cr", "p"):
            self._written.append(" " if self._cells else "\n")
        elif name == "tr":
            self._written.append("\n")
        elif name == "tab":
            self._written.append(" ")
        self._is_text = False

    def data(self, text: str) -> None:
        """Receive the text between two tags."""
        if self._is_text:
            self._written.append(text)
            self._left_chars -= len(text)

    def close(self) -> Any:
        """Called by the parser at the end of the part; does nothing."""
