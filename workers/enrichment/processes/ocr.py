"""The process that reads one document's pictures of text: `python -m workers.enrichment.processes.ocr`.

The arguments are the time limit in seconds, the memory limit in bytes, the maximum number of pages, the languages, and
the paths of tesseract, its data and its libraries.

The process starts tesseract first. Then the process is confined like a reader of pages, and can start no more programs.
Pillow and pdfium decode the document here; tesseract gets plain pictures, behind fences of its own. The worker ends
both processes after one document. If this process ends, the kernel also ends tesseract; if the worker ends, the kernel
ends this process (`end_with`). Neither process reads its input while it works, so neither would notice that its input
has closed.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final, cast

from telemetry.clock import Deadline, SystemClock
from workers.enrichment.evidence import Unreadable
from workers.enrichment.processes.member import answered, import_all, limit_memory, serve
from workers.enrichment.processes.tesseract import Tesseract
from workers.enrichment.reading.extract import MAX_TEXT_CHARS, extract
from workers.enrichment.reading.scans import as_tiff, images_in, page_image
from workers.processes.confinement import end_with

if TYPE_CHECKING:
    from PIL.Image import Image
    from pypdfium2 import PdfDocument

_READING_SHARE: Final = 0.8
"""After this fraction of the time limit, the answer is sent with the pages that are finished."""
_PAGE_END: Final = b"\f"
_PIECE_BYTES: Final = 64 * 1024


class PictureReader:
    """Reads the pictures of one document by a tesseract that has been started. Implements `Recogniser`."""

    def __init__(self, tesseract: subprocess.Popen[bytes], pages: int, deadline: Deadline) -> None:
        self._tesseract = tesseract
        self._input = cast("IO[bytes]", tesseract.stdin)
        self._output = cast("IO[bytes]", tesseract.stdout).fileno()
        self._pages = pages
        self._deadline = deadline
        self.is_unfinished = False
        """True if some pages were not read in time."""

    def of_image(self, body: bytes) -> str:
        """Return the text of an image file. Raises Unreadable."""
        return "\n\n".join(self._texts(images_in(body, self._pages)))

    def of_pages(self, document: PdfDocument, numbers: Sequence[int]) -> Sequence[str]:
        """Return the texts of these pages, up to the cap on pages. Raises Unreadable."""
        return self._texts(page_image(document, number) for number in numbers[: self._pages])

    def _texts(self, images: Iterable[Image]) -> list[str]:
        """Return the texts of the pages that are finished in time, but of at least one page. Raises Unreadable."""
        tiff, count = as_tiff(images)
        with suppress(BrokenPipeError), self._input:  # `_written` finds out if tesseract has ended
            self._input.write(tiff)
        pages = self._written()[:count]
        self.is_unfinished = len(pages) < count
        if not pages:
            raise Unreadable("tesseract could not read its pictures")
        return [page.decode(errors="replace").strip() for page in pages]

    def _written(self) -> list[bytes]:
        """Return the pages that are finished at the deadline or at tesseract's end; the first page may take longer."""
        found = bytearray()
        while len(found) < MAX_TEXT_CHARS:
            seconds = self._deadline.remaining if _PAGE_END in found else None
            ready, _, _ = select.select([self._output], [], [], seconds)
            if not ready:
                break
            piece = os.read(self._output, _PIECE_BYTES)
            if not piece and self._tesseract.wait() == 0:
                return bytes(found).split(_PAGE_END)
            if not piece:
                break
            found += piece
        return bytes(found).split(_PAGE_END)[:-1]


def read_pictures(body: bytes, media_type: str, charset: str | None, url: str, reader: PictureReader) -> dict[str, Any]:
    """Return the answer for a page, with the text of its pictures; `unfinished` if some pictures are not read."""
    extracted = extract(body, media_type, charset, url, recogniser=reader)
    return answered(extracted) | ({"unfinished": True} if reader.is_unfinished else {})


def main() -> None:
    """Read one document."""
    end_with(os.getppid())
    seconds, size, pages, languages, program, data, *libraries = sys.argv[1:]
    deadline = Deadline.after(SystemClock(), float(seconds) * _READING_SHARE)
    limit_memory(int(size))
    import_all("resiliparse")
    tesseract = Tesseract(program, data, tuple(libraries)).start(languages, float(seconds))
    reader = PictureReader(tesseract, int(pages), deadline)
    serve({"read": partial(read_pictures, reader=reader)}, float(seconds), is_parent=True)


if __name__ == "__main__":
    main()
