"""From bytes to text: the byte order mark, then what header and page say, then what the bytes look like.

A page is what it says also where a few of its bytes are not: a stray byte must not turn all of it into another script.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import chain

from charset_normalizer import from_bytes
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_ISO_2022_JP = re.compile(rb"\x1b\$[@B]")
"""Escapes that announce Japanese in ISO-2022-JP (RFC 1468), whose bytes are ASCII; no other text has them."""
_SIBLINGS = {
    "iso8859-2": "cp1250", "iso8859-5": "cp1251", "iso8859-6": "cp1256", "iso8859-7": "cp1253", "iso8859-8": "cp1255",
    "iso8859-9": "cp1254", "iso8859-13": "cp1257",
}  # fmt: skip
"""What a page is in whose bytes look like an ISO charset but for some that are control characters there."""
_ISO_CONTROLS = re.compile(rb"[\x80-\x9f]")
_PRESCAN_BYTES = 1024
"""How far into a page its own declaration may stand (WHATWG HTML, 13.2.3.2)."""
_DETECT_BYTES = 64 * 1024
_META = re.compile(rb"""<meta[^>]{0,512}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_FEW = 0.01
"""The part of a text that may be no character of its charset."""
_MANY = 0.1
"""With more of them in what follows the first, the rest need not be looked at."""
_REPLACED = "\ufffd"
_UTF_8 = "utf-8"
_WINDOWS_1252 = "cp1252"
_BYTES_OF_WINDOWS_1252 = "".join(
    chr(byte) if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes((byte,)).decode(_WINDOWS_1252) for byte in range(256)
)
"""All 256 are characters (WHATWG Encoding, section 9): Python's codec refuses five."""
_ASCII = bytes(range(128))
_CONTROLS = "\x81\x8d\x8f\x90\x9d"


def decode(body: bytes, declared: str | None) -> str:
    """The text of a body whose header declared this charset, or none. Never raises: what is left is replaced."""
    for mark, encoding in _MARKS:
        if body.startswith(mark):
            return body.decode(encoding, "replace")
    if body.isascii() and _ISO_2022_JP.search(body):
        return body.decode("iso2022_jp", "replace")
    # Bytes beyond ASCII that happen to be UTF-8 are UTF-8, and servers that declare Latin-1 for everything are many.
    text = _utf_8(body) if not body.isascii() else None
    if text is not None:
        return text
    said = [encoding for encoding in _said(body, declared) if encoding != _UTF_8]
    for encoding in chain(said, _detected(body)):
        text = _with_few_replaced(body, encoding) if encoding in said else _exact(body, encoding)
        if text is not None:
            return text
    return _windows_1252(body)


def _utf_8(body: bytes) -> str | None:
    """The body as UTF-8 where it is that, but for a few bytes; what is not UTF-8 has hardly a valid sequence in it."""
    try:
        return body.decode(_UTF_8)
    except UnicodeDecodeError as error:
        sample = body[error.start : error.start + _DETECT_BYTES].decode(_UTF_8, "replace")
    if sample.count(_REPLACED) > max(1, len(sample) * _MANY):
        return None
    text = body.decode(_UTF_8, "replace")
    replaced = text.count(_REPLACED) - body.count(_REPLACED.encode())
    ascii_bytes = len(body) - len(_beyond_ascii(body))
    valid = len(text) - ascii_bytes - replaced
    return text if replaced <= min(valid, len(text) * _FEW) else None


def _beyond_ascii(body: bytes) -> bytes:
    return body.translate(None, _ASCII)


def _with_few_replaced(body: bytes, encoding: str) -> str | None:
    text = _windows_1252(body) if encoding == _WINDOWS_1252 else _lenient(body, encoding)
    odd = sum(map(text.count, _CONTROLS + _REPLACED)) if text is not None else 0
    return text if text is not None and odd <= len(text) * _FEW else None


def _windows_1252(body: bytes) -> str:
    return codecs.charmap_decode(body, "strict", _BYTES_OF_WINDOWS_1252)[0]


def _lenient(body: bytes, encoding: str) -> str | None:
    try:
        return body.decode(encoding, "replace")
    except LookupError:
        return None  # a charset of browsers that Python has no codec for


def _exact(body: bytes, encoding: str) -> str | None:
    try:
        return body.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _said(body: bytes, declared: str | None) -> Iterator[str]:
    """What the header says, and then the page."""
    yield from _known(declared)
    meta = _META.search(body[:_PRESCAN_BYTES])
    yield from _known(meta.group(1).decode("ascii") if meta is not None else None)


def _detected(body: bytes) -> Iterator[str]:
    if body.isascii():
        yield "ascii"
    elif len(_beyond_ascii(body)) <= len(body) * _FEW:
        yield _WINDOWS_1252  # dashes, quotes and a name: of another script there would be more, and detection guesses
    sample = body[:_DETECT_BYTES]
    if len(body) > len(sample):
        # Neither a line's end nor a space is part of a longer character, in whatever charset.
        sample = sample[: max(sample.rfind(b"\n"), sample.rfind(b" ")) + 1] or sample
    for encoding in _known(detect_encoding(sample)):
        if encoding in _SIBLINGS and _ISO_CONTROLS.search(body):
            yield _SIBLINGS[encoding]
        yield encoding
    best = from_bytes(sample).best()
    if best is not None:
        yield best.encoding


def _known(label: str | None) -> Iterator[str]:
    """The codec for a label of the WHATWG Encoding standard; Python's own list also has zlib, idna and the like."""
    encoding = map_encoding_to_html5(label.strip(" \"'").lower(), fallback_utf8=False) if label else None
    if encoding is not None:
        yield str(encoding)
