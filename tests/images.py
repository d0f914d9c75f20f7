"""Small images of each format, and requests and parts that have them."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from tests.asking import request_of
from workers.engines.base import GenerationRequest

PNG = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
"""A PNG of one pixel."""
GIF = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xd9"
WEBP = b64decode("UklGRiQAAABXRUJQVlA4IBgAAAAwAQCdASoBAAEAAwA0JaQAA3AA/vuUAAA=")


def image_part(url: object, **fields: object) -> dict[str, Any]:
    """An image in the shape of chat completions."""
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def asked_of(*urls: str, text: str = "Describe the image.") -> GenerationRequest:
    """A request with a text and then these images."""
    parts = [{"type": "text", "text": text}, *map(image_part, urls)]
    return request_of(messages=[{"role": "user", "content": parts}], max_tokens=64)
