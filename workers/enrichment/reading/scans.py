"""Prepares pictures of text for OCR, as gray pages of bounded size in one TIFF. Runs in the process `ocr`.

Pillow decodes the images of strangers here, so that tesseract gets only bytes that this module wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from math import sqrt
from typing import Final

import pypdfium2
from PIL import Image, ImageOps, ImageSequence, TiffImagePlugin

from workers.enrichment.evidence import Unreadable

MAX_PIXELS: Final = 20_000_000
"""Cap on an image's pixels, checked before the image is decoded. A page of A4 at 400 dpi has 15.5 million."""
_PAGE_PIXELS: Final = 10_000_000
"""Cap on the pixels of a rendered page. A larger page is rendered coarser. A page of A4 at 300 dpi has 8.7 million."""
_PAGE_SIDE: Final = 32_767
"""Cap on the pixels of a rendered page's side: tesseract refuses a page with a longer side.

Tesseract would refuse all pages after that page, too. Without the cap on a side, a page of a billion by a billionth
points would take gigabytes.
"""
_DPI: Final = 300
"""The resolution that tesseract's manual advises."""
_FORMATS: Final = ("PNG", "JPEG", "TIFF", "WEBP")
Image.init()  # imports Pillow's plugins now: a confined process cannot import them


def images_in(body: bytes, most: int) -> Iterator[Image.Image]:
    """Yield the pages of an image file as gray images: up to `most` pages of a TIFF, and one of any other file.

    If a page is broken, only the pages before it are used. Raises Unreadable if the first page cannot be used.
    """
    is_first = True
    try:
        with Image.open(BytesIO(body), formats=_FORMATS) as image:
            pages = most if image.format == "TIFF" else 1
            for frame in islice(ImageSequence.Iterator(image), pages):
                yield _gray(frame)
                is_first = False
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises errors of many classes for broken files
        if is_first:
            raise _reason(error) from None


def _reason(error: Exception) -> Unreadable:
    if isinstance(error, Unreadable):
        return error
    is_bomb = isinstance(error, Image.DecompressionBombError)
    return _too_large() if is_bomb else Unreadable("it is not an image that can be read")


def _too_large() -> Unreadable:
    return Unreadable(f"its image has more than {MAX_PIXELS} pixels")


def _gray(image: Image.Image) -> Image.Image:
    """Return the image upright and in gray, with white in place of transparent areas.

    Raises Unreadable for a decompression bomb before the image is decoded.
    """
    if image.width * image.height > MAX_PIXELS:
        raise _too_large()
    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        return upright.convert("L")
    coloured = upright.convert("RGBA")
    paper = Image.new("L", coloured.size, 255)
    paper.paste(coloured.convert("L"), mask=coloured.getchannel("A"))
    return paper


def page_image(document: pypdfium2.PdfDocument, number: int) -> Image.Image:
    """Return a page of a PDF as a gray image. If the page cannot be rendered, return an empty image."""
    try:
        page = document[number]
        width, height = page.get_size()
        longest = max(1.0, width, height)
        scale = min(_DPI / 72, sqrt(_PAGE_PIXELS / max(1.0, width * height)), (_PAGE_SIDE - 1) / longest)
        image: Image.Image = page.render(scale=scale, grayscale=True).to_pil().convert("L")
        page.close()
    except pypdfium2.PdfiumError:
        return Image.new("L", (100, 100), 255)
    return image


def as_tiff(images: Iterable[Image.Image]) -> tuple[bytes, int]:
    """Return the images as pages of one TIFF, and the number of images."""
    written, count = BytesIO(), 0
    with TiffImagePlugin.AppendingTiffWriter(written) as pages:
        for image in images:
            image.save(pages, "TIFF", compression="tiff_adobe_deflate", dpi=(_DPI, _DPI))
            pages.newFrame()
            count += 1
    return written.getvalue(), count
