"""Decompresses the content of record batches (message format 2), up to a bound.

| codec | format of the content |
| --- | --- |
| gzip | members of a gzip file (RFC 1952) |
| snappy | blocks in the framing of xerial's snappy-java, from Java clients, or one raw block, from librdkafka |
| lz4 | a frame of the LZ4 frame format (KIP-57) |
| zstd | frames of Zstandard (RFC 8878, KIP-110) |

The bound is needed because any producer may write a batch of 1 MiB that decompresses to gigabytes.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from typing import Protocol

import cramjam
from lz4.frame import LZ4FrameDecompressor

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor
else:
    from backports.zstd import ZstdDecompressor

MAX_BYTES = 64 * 1024 * 1024
"""Limit for the decompressed content of one batch. Clients limit a batch before they compress it, to 1 MiB by default:
Java's with `max.request.size`, librdkafka with `message.max.bytes`."""

_GZIP, _SNAPPY, _LZ4, _ZSTD = range(1, 5)
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
"""This number tells zlib to expect gzip's header and trailer."""
_PIECE_BYTES = 16 * 1024
"""Size of the pieces that a decoder gets. A decoder copies all bytes after the end of its frame. If it got the whole
content at once, it would copy a megabyte of empty frames 50,000 times."""
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER_BYTES = len(_XERIAL) + 8
"""Length of xerial's header, which ends with two version numbers. These numbers are ignored, because some producers
write them in the wrong byte order.
"""


class CannotDecompress(ValueError):  # noqa: N818 - named after the event
    """The content of a batch cannot be decompressed: `UnknownCodec`, `TooLarge` or `Broken`."""


class UnknownCodec(CannotDecompress):
    """The batch's attributes name a codec that Kafka does not define."""


class TooLarge(CannotDecompress):
    """The content is larger than `MAX_BYTES`."""


class Broken(CannotDecompress):
    """The content is not in its codec's format."""


class _Decoder(Protocol):
    """A decoder of one frame, with the interface of the standard library's decoders."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def decompress(codec: int, content: bytes | bytearray | memoryview) -> bytearray:
    """Decompress a batch's content; `codec` is the lowest three bits of the batch's attributes.

    If the content ends within a frame, the result ends there too. Bytes after a frame that do not begin another frame
    are ignored, as Java's client does with gzip. Raises CannotDecompress.
    """
    decoder = _DECODERS.get(codec)
    if decoder is None:
        raise UnknownCodec(f"{codec} is no codec of Kafka's")
    try:
        return decoder(memoryview(content))
    except CannotDecompress:
        raise
    except Exception as error:  # each codec's library raises errors of its own
        raise Broken(f"the content cannot be decompressed: {error}") from error


def _frames(new_decoder: Callable[[], _Decoder]) -> Callable[[memoryview], bytearray]:
    """Return a function that decompresses consecutive frames."""

    def decompressed(content: memoryview) -> bytearray:
        found, position, end_of_frame = bytearray(), 0, 0
        decoder = new_decoder()
        while position < len(content):
            piece = bytes(content[position : position + _PIECE_BYTES])
            try:
                found += decoder.decompress(piece, MAX_BYTES + 1 - len(found))
            except Exception:
                if not end_of_frame:
                    raise
                return found[:end_of_frame]
            if len(found) > MAX_BYTES:
                raise TooLarge(f"the content is larger than {MAX_BYTES} bytes")
            position += len(piece)
            if decoder.eof:
                position -= len(decoder.unused_data or b"")
                end_of_frame, decoder = len(found), new_decoder()
        return found

    return decompressed


def _snappy(content: memoryview) -> bytearray:
    if content[: len(_XERIAL)] != _XERIAL:
        return _snappy_block(content, MAX_BYTES)
    found, position = bytearray(), 0
    while position < len(content):
        if content[position : position + len(_XERIAL)] == _XERIAL:  # each block may have a header before it
            position += _XERIAL_HEADER_BYTES
            continue
        (size,) = struct.unpack_from(">I", content, position)
        position += 4
        found += _snappy_block(content[position : position + size], MAX_BYTES - len(found))
        position += size
    return found


def _snappy_block(block: memoryview, room: int) -> bytearray:
    """Decompress one block. Its stated length is checked first, because the library allocates that length at once."""
    if cramjam.snappy.decompress_raw_len(block) > room:
        raise TooLarge(f"the content is larger than {MAX_BYTES} bytes")
    return bytearray(cramjam.snappy.decompress_raw(block))


_DECODERS: dict[int, Callable[[memoryview], bytearray]] = {
    _GZIP: _frames(lambda: zlib.decompressobj(_GZIP_WINDOW)),
    _SNAPPY: _snappy,
    _LZ4: _frames(LZ4FrameDecompressor),
    _ZSTD: _frames(ZstdDecompressor),
}
