"""A consumer that reads every record that a broker accepts; kafka-python's own consumer raises errors at some records.

A broker checks the lengths in a record and little else (Kafka's `DefaultRecord.readFrom`). So any producer may write a
header's name that is not UTF-8, or set a record's attributes, which are unused. A producer may also write a number with
more bits than its type has, or bytes after the end of compressed content. kafka-python raises an error at each such
record, and again on every poll, so that its reader never gets past the record. kafka-python also accepts an offset
outside the record's batch, needs further libraries for zstd and snappy, and decompresses without a bound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from kafka import KafkaConsumer  # noqa: TID251 - the subclass below reads every record
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch
from kafka.record.util import decode_varint

from producers.decompress import CannotDecompress, decompress
from telemetry.logs import get_logger

log = get_logger()


class RecordConsumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """kafka-python's consumer, changed so that it raises no error because of a record's content."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self._fetcher.PartitionRecords = FetchedRecords


class FetchedRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of one partition that one answer from a broker contains."""

    def _unpack_records(self, partition: Any, records: Any, *deserializers: Any) -> Any:
        return super()._unpack_records(partition, _Batches(records, partition), *deserializers)


class _Batches:
    """The batches of kafka-python's `MemoryRecords`, with a `_ReadableBatch` for each batch that a producer wrote."""

    def __init__(self, records: Any, partition: Any) -> None:
        self._records = records
        self._partition = partition

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        is_produced = isinstance(batch, DefaultRecordBatch) and not batch.is_control_batch
        return _ReadableBatch(batch._buffer, self._partition) if is_produced else batch


class _ReadableBatch(DefaultRecordBatch):  # type: ignore[misc]
    r"""A record batch (KIP-98), read by the broker's rules. Iterating over the batch raises no errors.

    Bytes of a header's name that are not UTF-8 become escapes such as `\xff`; no header of the fleet has such a name.
    Records that still cannot be read are left out, with a warning.
    """

    _buffer: bytearray
    _pos: int
    _decompressed: bool
    _next_record_index: int

    def __init__(self, buffer: Any, partition: Any) -> None:
        super().__init__(buffer)
        self._partition = partition

    def __iter__(self) -> Any:
        try:
            self._maybe_uncompress()
        except CannotDecompress as error:
            self._leave_rest(error)
        return self

    def __next__(self) -> Any:
        if self._next_record_index >= self._num_records:
            raise StopIteration
        try:
            record = self._read_msg()
        except (ValueError, IndexError) as error:
            self._leave_rest(error)
            raise StopIteration from None
        self._next_record_index += 1
        return record

    def _leave_rest(self, error: Exception) -> None:
        _warn_of_unreadable(*self._partition, self.base_offset + self._next_record_index, type(error).__name__)
        self._next_record_index = self._num_records

    def _maybe_uncompress(self) -> None:
        if self._decompressed or self.compression_type == self.CODEC_NONE:
            return
        content = decompress(self.compression_type, memoryview(self._buffer)[self._pos :])
        self._buffer, self._pos, self._decompressed = content, 0, True

    def _read_msg(self) -> Any:
        buffer = self._buffer
        length, start = _number(buffer, self._pos)
        delta_ms, position = _number(buffer, start + 1, 64)  # skips one byte of attributes
        offset_delta, position = _number(buffer, position)
        key, position = _field(buffer, position)
        value, position = _field(buffer, position)
        count, position = _number(buffer, position)
        headers = []
        for _ in range(count):
            name, position = _field(buffer, position)
            data, position = _field(buffer, position)
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), data))
        if position != start + length:
            raise ValueError("the record's length is not the one in its first field")
        if not 0 <= offset_delta <= self.last_offset_delta:
            offset_delta = self._next_record_index  # replaces a stated offset that lies outside this batch
        self._pos = position
        is_stamped = self.timestamp_type == self.LOG_APPEND_TIME
        at_ms = self.max_timestamp if is_stamped else _as_int64(self.first_timestamp + delta_ms)
        offset = self.base_offset + offset_delta
        return DefaultRecord(length, offset, at_ms, self.timestamp_type, key, value, headers)


def _field(buffer: bytearray, position: int) -> tuple[bytes | None, int]:
    """Read bytes that follow their length; return them and the next position.

    For a negative length, return None instead of the bytes.
    """
    length, position = _number(buffer, position)
    if length < 0:
        return None, position
    end = position + length
    if end > len(buffer):
        raise ValueError("a field ends past the end of the batch")
    return bytes(buffer[position:end]), end


def _number(buffer: bytearray, position: int, bits: int = 32) -> tuple[int, int]:
    """Read a variable-length number; return it and the next position.

    Only its lowest `bits` bits are used, as in the broker.
    """
    value, position = decode_varint(buffer, position)
    if -(1 << 31) <= value < 1 << 31:
        return value, position
    written = (value << 1 if value >= 0 else (-value << 1) - 1) & ((1 << bits) - 1)
    return (written >> 1) ^ -(written & 1), position


def _as_int64(value: int) -> int:
    """Wrap a number around at 64 bits, as the broker's numbers do."""
    half = 1 << 63
    return (value + half) % (2 * half) - half


@lru_cache(maxsize=1000)  # cached, so that a command that reads a topic twice warns once for each place
def _warn_of_unreadable(topic: str, partition: int, offset: int, reason: str) -> None:
    log.warning(
        "A batch of records cannot be read; leaving out its records from this offset on.",
        action="batch-unreadable",
        topic=topic,
        partition=partition,
        offset=offset,
        reason=reason,
    )
