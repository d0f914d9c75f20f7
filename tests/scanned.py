"""Pictures of text as a scanner makes them: drawn by Pillow, with noise and a slight turn."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cli.devkit.kafka.jars import program


def tesseract() -> str:
    """Return the path of Debian's tesseract with its English data; install it if it is missing."""
    return program("tesseract", "tesseract-ocr")


def scanned(*lines: str, width: int = 1700, height: int = 0, seed: int = 1) -> Image.Image:
    """Return a gray page with these lines, with specks, turned by a third of a degree."""
    chance = Random(seed)
    page = Image.new("L", (width, max(height, 160 + 80 * len(lines))), 244)
    drawing = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=38)
    for number, line in enumerate(lines):
        drawing.text((90, 80 + 80 * number), line, fill=40, font=font)
    for _ in range(page.width * page.height // 400):
        page.putpixel((chance.randrange(page.width), chance.randrange(page.height)), chance.randrange(120, 256))
    return page.rotate(0.3, resample=Image.Resampling.BICUBIC, fillcolor=244)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the image as a file of this kind, such as `PNG`, or `PDF` for a document without a text layer."""
    written = BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def scanned_pdf(pages: Sequence[Image.Image]) -> bytes:
    """Return a PDF with a picture on each page, and no text."""
    return saved(pages[0], "PDF", save_all=True, append_images=list(pages[1:]), resolution=200)
