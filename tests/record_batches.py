"""Record batches (KIP-98) built byte by byte, for records that a broker accepts though no client writes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from unittest.mock import patch

from kafka import KafkaProducer
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.util import calc_crc32c, encode_varint

Header = tuple[bytes, bytes | None]


def number(value: int) -> bytes:
    """A variable-length number."""
    written = bytearray()
    encode_varint(value, written.append)
    return bytes(written)


def field(content: bytes | None) -> bytes:
    """A field of a record: its length, then its content."""
    return number(-1) if content is None else number(len(content)) + content


def record(
    value: bytes | None,
    headers: Sequence[Header] = (),
    *,
    key: bytes | None = None,
    offset_delta: int = 0,
    attributes: int = 0,
    delta_ms: bytes = number(0),
) -> bytes:
    """One record. The broker checks neither the attributes nor the header names."""
    named = b"".join(field(name) + field(data) for name, data in headers)
    body = bytes([attributes]) + delta_ms + number(offset_delta) + field(key) + field(value) + number(len(headers))
    return number(len(body + named)) + body + named


def batch(records: Sequence[bytes], *, codec: int = 0, content: bytes | None = None, at_ms: int = 0) -> bytes:
    """A batch of these records.

    `content` replaces the records' bytes, for example compressed. `at_ms`: Unix milliseconds.
    """
    body = b"".join(records) if content is None else content
    count = len(records)
    checked = struct.pack(">hiqqqhii", codec, count - 1, at_ms, at_ms, -1, -1, -1, count) + body
    checksum = struct.pack(">I", calc_crc32c(checked))
    return struct.pack(">qiib", 0, len(checked) + 9, -1, 2) + checksum + checked


def produce(bootstrap_servers: str, written: Sequence[tuple[str, bytes]]) -> None:
    """Send a batch to partition 0 of each of these topics. Raises KafkaError if the broker refuses a batch."""
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, enable_idempotence=False, acks="all")
    try:
        for topic, content in written:
            with patch.object(DefaultRecordBatchBuilder, "build", lambda _, content=content: bytearray(content)):
                producer.send(topic, b"", partition=0).get(60)  # a new topic needs some time to get its leader
    finally:
        producer.close(timeout=5)
