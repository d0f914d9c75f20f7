"""Images in chat messages: their URLs in OpenAI's shape, their formats, and their media types.

Sources: OpenAI API reference, "Create chat completion", `messages[].content[].image_url`; RFC 2397 for data URLs.
A format is recognised by a file's first bytes: PNG (RFC 2083, section 3.1), JPEG (T.81, B.1.1.3), GIF89a and WebP.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import StringConstraints

MAX_IMAGES: Final = 16
"""The maximum number of images of one job."""
IMAGE_TOKENS: Final = 1000
"""The estimated number of tokens of an image, used until an engine has counted them.

An image of 1,024 by 1,024 pixels takes 258 to 1,400 tokens, depending on the model.
"""

_FIRST_BYTES: Final[Mapping[str, re.Pattern[bytes]]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
IMAGE_TYPES: Final = tuple(_FIRST_BYTES)
"""The media types of the formats that a job may have."""

_CHAR: Final = "[A-Za-z0-9+/]"
_FORMATS: Final = (
    f"png;base64,iVBORw0KGg[o-r]{_CHAR}",
    "jpeg;base64,/9j/",
    "gif;base64,R0lGOD[dl]h",
    f"webp;base64,UklGR[g-v]{_CHAR}{{4}}[BFJNRVZdhlptx159]XRUJQ",
)
"""Each format with its first bytes in base64."""
DATA_URL: Final = f"^data:image/(?:{'|'.join(_FORMATS)})(?:{_CHAR}{{4}})*(?:{_CHAR}{{2}}==|{_CHAR}{{3}}=)?$"
DataUrl = Annotated[str, StringConstraints(pattern=DATA_URL)]
"""A data URL (RFC 2397) of an image in base64. The media type must be that of the image's first bytes."""


def media_type_of(image: bytes) -> str | None:
    """Return the media type of an image, recognised by its first bytes; None for an unknown format."""
    return next((name for name, first in _FIRST_BYTES.items() if first.match(image)), None)


def data_url(media_type: str, image: bytes) -> str:
    """Return the image as a data URL."""
    return f"data:{media_type};base64,{b64encode(image).decode()}"


def is_data_url(url: str) -> bool:
    """True for the URL of an image that the job itself carries."""
    return url.startswith("data:")


def parted_data_url(url: str) -> tuple[str, str]:
    """Return the media type and the base64 text of an image's data URL."""
    head, _, text = url.partition(";base64,")
    return head.removeprefix("data:"), text
