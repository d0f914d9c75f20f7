"""From bytes to text: the byte order mark, then what header and page say, then what the bytes look like."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from charset_normalizer import from_bytes
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_PRESCAN_BYTES = 1024
"""How far into a page its own declaration may stand (WHATWG HTML, 13.2.3.2)."""
_DETECT_BYTES = 64 * 1024
_META = re.compile(rb"""<meta[^>]{0,512}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)


def decode(body: bytes, declared: str | None) -> str:
    """The text of a body whose header declared this charset, or none. Never raises: what is left is replaced."""
    for encoding in _candidates(body, declared):
        try:
            return body.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return body.decode("cp1252", "replace")


def _candidates(body: bytes, declared: str | None) -> Iterator[str]:
    for mark, encoding in _MARKS:
        if body.startswith(mark):
            yield encoding
    # Bytes beyond ASCII that happen to be UTF-8 are UTF-8, and servers that declare Latin-1 for everything are many.
    if not body.isascii():
        yield "utf-8"
    yield from _known(declared)
    meta = _META.search(body[:_PRESCAN_BYTES])
    yield from _known(meta.group(1).decode("ascii") if meta is not None else None)
    if body.isascii():
        yield "ascii"
    yield from _known(detect_encoding(body[:_DETECT_BYTES]))
    best = from_bytes(body[:_DETECT_BYTES]).best()
    if best is not None:
        yield best.encoding


def _known(label: str | None) -> Iterator[str]:
    """The codec for a label of the WHATWG Encoding standard; Python's own list also has zlib, idna and the like."""
    encoding = map_encoding_to_html5(label.strip(" \"'").lower(), fallback_utf8=False) if label else None
    if encoding is not None:
        yield str(encoding)
