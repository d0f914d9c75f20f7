"""The commands' parser gets batches that a broker accepts."""

from __future__ import annotations

import gzip
import struct
from typing import Any
from unittest.mock import MagicMock, patch

import lz4.frame
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords

from producers.records import FetchedRecords, RecordConsumer
from tests.record_batches import batch, field, number, record

PLACE = TopicPartition("a", 3)
NAMES = st.binary(max_size=6) | st.text(max_size=4).map(str.encode) | st.just(b"tenant")
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=6)), max_size=4)
CONTENT = st.none() | st.binary(max_size=20)
CODECS = {0: bytes, 1: gzip.compress, 3: lz4.frame.compress}
AFTER = record(b"after")


def read(written: bytes, place: TopicPartition = PLACE) -> list[Any]:
    """Records of a fetch answer, read as kafka-python's consumer reads them."""
    records: list[Any] = FetchedRecords(0, place, MemoryRecords(written)).take()
    return records


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if "batch-unreadable" in line.getMessage()]


@example([(b"v", [(b"\xff\xfe", b"")], None)], 1, 0)
@example([(None, [], b"")], 0, 0x80)
@given(
    st.lists(st.tuples(CONTENT, HEADERS, CONTENT), min_size=1, max_size=4),
    st.sampled_from([*CODECS]),
    st.integers(0, 255),
)
def test_every_record_is_read_whatever_bytes_its_names_and_attributes_are(
    said: list[tuple[bytes | None, list[tuple[bytes, bytes | None]], bytes | None]], codec: int, attributes: int
) -> None:
    records = [
        record(value, headers, key=key, offset_delta=index, attributes=attributes)
        for index, (value, headers, key) in enumerate(said)
    ]
    found = read(batch(records, codec=codec, content=CODECS[codec](b"".join(records))) + batch([AFTER]))
    assert [(one.value, one.key, one.offset, one.timestamp) for one in found] == [
        *((value, key, index, 0) for index, (value, _, key) in enumerate(said)),
        (b"after", None, 0, 0),
    ]
    for one, (_, headers, _) in zip(found, said, strict=False):
        assert one.headers == [(name.decode("utf-8", "backslashreplace"), data) for name, data in headers]


@given(st.binary(min_size=1, max_size=6))
def test_a_header_whose_name_is_not_utf_8_is_none_of_ours(noise: bytes) -> None:
    for name in (noise + b"tenant", b"tenant" + noise, noise):
        (found,) = read(batch([record(b"v", [(name, b"acme")])]))
        assert found.headers[0][0] != "tenant"
        assert found.headers[0][0].encode()  # the name can be encoded as UTF-8 again


def test_bits_that_do_not_count_in_a_length_are_passed_over() -> None:
    one = b"\x82\x80\x80\x80\x10"  # the number is 1 << 32 | 2, whose lower 32 bits are 1 (zigzag)
    body = b"\0\0\0" + one + b"k" + field(b"v") + number(0)
    assert [(each.key, each.value) for each in read(batch([number(len(body)) + body]))] == [(b"k", b"v")]


def test_an_offset_that_is_not_in_the_batch_is_not_believed() -> None:
    written = batch([record(b"v", offset_delta=9), record(b"w", offset_delta=-7)])
    assert [(one.offset, one.value) for one in read(written)] == [(0, b"v"), (1, b"w")]


def test_a_time_is_counted_in_64_bits() -> None:
    (found,) = read(batch([record(b"v", delta_ms=number((1 << 63) - 1))], at_ms=9))
    assert found.timestamp == 8 - (1 << 63)
    struct.pack(">q", found.timestamp)


@pytest.mark.parametrize(
    "more", [b"garbage", gzip.compress(b"", mtime=0), b"\x1f\x8bgarbage"], ids=["garbage", "gzip", "half"]
)
def test_bytes_after_compressed_content_are_passed_over(more: bytes) -> None:
    one = record(b"v")
    written = batch([one], codec=1, content=gzip.compress(one[:3]) + gzip.compress(one[3:]) + more)
    assert [each.value for each in read(written)] == [b"v"]


@given(st.sampled_from([1, 3, 0]), st.binary(max_size=60), st.integers(1, 3))
def test_a_batch_of_noise_is_left_out_and_those_behind_it_are_read(codec: int, noise: bytes, count: int) -> None:
    found = read(batch([b""] * count, codec=codec, content=noise) + batch([AFTER]))
    assert found[-1].value == b"after"


def test_a_batch_that_cannot_be_read_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    written = batch([record(b"v"), b"\x00"]) + batch([b"\x00"]) + batch([AFTER])
    for _ in range(2):
        assert [one.value for one in read(written, TopicPartition("warned", 3))] == [b"v", b"after"]
    assert len(warnings_in(caplog)) == 2  # there is one warning for each unreadable batch, not for each read


def test_a_batch_of_an_unknown_codec_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = read(batch([AFTER], codec=7) + batch([AFTER]), TopicPartition("unknown codec", 3))
    assert [one.value for one in found] == [b"after"]
    assert ["UnknownCodec" in line for line in warnings_in(caplog)] == [True]


def test_a_wrong_checksum_is_an_error() -> None:
    damaged = bytearray(batch([AFTER]))
    damaged[-2] ^= 1
    with pytest.raises(CorruptRecordError, match="crc"):
        read(bytes(damaged))


def test_the_consumer_parses_what_it_fetches_with_this_parser() -> None:
    """If a new version of kafka-python parsed fetched batches by other functions, our parser would be bypassed."""
    fetcher: Any = MagicMock(config=dict(Fetcher.DEFAULT_CONFIG))
    fetcher._subscriptions.assignment = {PLACE: MagicMock(position=MagicMock(offset=0))}
    with patch.object(KafkaConsumer, "__init__", lambda self: setattr(self, "_fetcher", fetcher)):
        RecordConsumer()
    answer = MagicMock(error_code=0, high_watermark=1, diverging_epoch=None, preferred_read_replica=None)
    answer.records, answer.aborted_transactions = batch([record(b"v", [(b"\xff", b"")])]), []
    fetched = MagicMock(topic_partition=PLACE, fetched_offset=0, partition_data=answer, metric_aggregator=None)
    (found,) = Fetcher._parse_fetched_data(fetcher, fetched).take()
    assert found.headers == [("\\xff", b"")]
