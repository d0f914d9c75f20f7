"""Decodes a page's bytes: by a byte order mark, as UTF-8, by the charset in the header or the page, or by detection.

A few invalid bytes do not rule a charset out. Otherwise a single invalid byte could turn a whole page into another
script.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import chain

from resiliparse.parse.encoding import detect_encoding
from w3lib.encoding import html_body_declared_encoding, read_bom, resolve_encoding

_ISO_2022_JP = re.compile(rb"\x1b\$[@B]")
"""The escapes before Japanese text in ISO-2022-JP (RFC 1468), whose bytes are all ASCII.

No other text has these escapes.
"""
_SIBLINGS = {
    "iso8859-2": "cp1250", "iso8859-5": "cp1251", "iso8859-6": "cp1256", "iso8859-7": "cp1253", "iso8859-8": "cp1255",
    "iso8859-9": "cp1254", "iso8859-13": "cp1257",
}  # fmt: skip
"""The Windows charset that is tried before a detected ISO charset if that would turn bytes into control characters."""
_ISO_CONTROLS = re.compile(rb"[\x80-\x9f]")
_LABELS = (
    "utf-8 utf-16 utf-16le utf-16be ibm866 iso-8859-2 iso-8859-3 iso-8859-4 iso-8859-5 iso-8859-6 iso-8859-7 "
    "iso-8859-8 iso-8859-10 iso-8859-13 iso-8859-14 iso-8859-15 iso-8859-16 koi8-r koi8-u macintosh windows-874 "
    "windows-1250 windows-1251 windows-1252 windows-1253 windows-1254 windows-1255 windows-1256 windows-1257 "
    "windows-1258 gbk gb18030 big5 euc-jp iso-2022-jp shift_jis euc-kr"
)
_BROWSERS = frozenset(map(resolve_encoding, _LABELS.split()))
"""The charsets of the WHATWG Encoding standard. Python's own list also has zlib and idna."""
_DETECT_BYTES = 64 * 1024
_FEW = 0.01
"""Largest share of a text's characters that may be invalid in a charset."""
_MANY = 0.1
"""A larger share of invalid characters rules out UTF-8.

The share is taken in a sample from the first invalid character on.
"""
_REPLACED = "\ufffd"
_UTF_8 = "utf-8"
_WINDOWS_1252 = "cp1252"
_BYTES_OF_WINDOWS_1252 = "".join(
    chr(byte) if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes((byte,)).decode(_WINDOWS_1252) for byte in range(256)
)
"""The characters of all 256 bytes in windows-1252 (WHATWG Encoding, section 9); Python's codec refuses five bytes."""
_ASCII = bytes(range(128))
_CONTROLS = "\x81\x8d\x8f\x90\x9d"


def decode(body: bytes, declared: str | None) -> str:
    """Decode a body; `declared` is the header's charset, if any. Never raises: invalid bytes are replaced."""
    marked, mark = read_bom(body)
    if marked is not None and mark is not None:
        return body[len(mark) :].decode(marked, "replace")
    if body.isascii() and _ISO_2022_JP.search(body):
        return body.decode("iso2022_jp", "replace")
    # UTF-8 is tried before the header's charset, because text in another charset is hardly ever valid UTF-8, and many
    # servers declare Latin-1 for all pages.
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
    """Decode the body as UTF-8. Return None if many bytes are invalid: the text is then in another charset."""
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
        return None  # browsers know this charset, but Python has no codec for it


def _exact(body: bytes, encoding: str) -> str | None:
    try:
        return body.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _said(body: bytes, declared: str | None) -> Iterator[str]:
    """Yield the charset in the header, then the charset in the page's meta element or XML declaration."""
    yield from _known(declared)
    yield from _known(html_body_declared_encoding(body))


def _detected(body: bytes) -> Iterator[str]:
    if body.isascii():
        yield "ascii"
    elif len(_beyond_ascii(body)) <= len(body) * _FEW:
        yield _WINDOWS_1252  # with few bytes beyond ASCII, such as dashes, quotes or a name, detection would guess
    sample = body[:_DETECT_BYTES]
    if len(body) > len(sample):
        # The sample ends at a line's end or a space: no charset has these bytes inside a longer character.
        sample = sample[: max(sample.rfind(b"\n"), sample.rfind(b" ")) + 1] or sample
    for encoding in _known(detect_encoding(sample)):
        if encoding in _SIBLINGS and _ISO_CONTROLS.search(body):
            yield _SIBLINGS[encoding]
        yield encoding


def _known(label: str | None) -> Iterator[str]:
    """Yield the codec that browsers use for a label; nothing for an unknown label."""
    encoding = resolve_encoding(label.strip(" \"'")) if label else None
    if encoding in _BROWSERS and encoding is not None:
        yield encoding
