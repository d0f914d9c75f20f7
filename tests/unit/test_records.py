"""Record batches as clients write them: every codec, broken batches, and decompression bombs."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import cramjam
import lz4.frame
import pytest
from backports import zstd
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords

from producers.decompress import MAX_BYTES, Broken, CannotDecompress, TooLarge, UnknownCodec, decompress
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


def test_lengths_offsets_and_times_are_counted_within_their_bits() -> None:
    one = b"\x82\x80\x80\x80\x10"  # the number is 1 << 32 | 2, whose lower 32 bits are 1 (zigzag)
    body = b"\0\0\0" + one + b"k" + field(b"v") + number(0)
    assert [(each.key, each.value) for each in read(batch([number(len(body)) + body]))] == [(b"k", b"v")]
    beyond = batch([record(b"v", offset_delta=9), record(b"w", offset_delta=-7)])
    assert [(one.offset, one.value) for one in read(beyond)] == [(0, b"v"), (1, b"w")]
    (found,) = read(batch([record(b"v", delta_ms=number((1 << 63) - 1))], at_ms=9))
    assert found.timestamp == 8 - (1 << 63)
    struct.pack(">q", found.timestamp)


def test_bytes_after_compressed_content_are_passed_over() -> None:
    one = record(b"v")
    for more in (b"garbage", gzip.compress(b"", mtime=0), b"\x1f\x8bgarbage"):
        written = batch([one], codec=1, content=gzip.compress(one[:3]) + gzip.compress(one[3:]) + more)
        assert [each.value for each in read(written)] == [b"v"]


def test_a_batch_that_cannot_be_read_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    written = batch([record(b"v"), b"\x00"]) + batch([b"\x00"]) + batch([AFTER], codec=7) + batch([AFTER])
    for _ in range(2):
        assert [one.value for one in read(written, TopicPartition("warned", 3))] == [b"v", b"after"]
    # There is one warning for each unreadable batch, not for each read.
    assert ["UnknownCodec" in line for line in warnings_in(caplog)] == [False, False, True]
    for codec in (0, 5, 6, 7):
        with pytest.raises(UnknownCodec, match=str(codec)):
            decompress(codec, b"")


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


# -- compressed batches ------------------------------------------------------------------------------------------------


GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
XERIAL_HEADER = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
MIB = 1024 * 1024


def raw_snappy(content: bytes) -> bytes:
    """One block, as written by librdkafka."""
    return bytes(cramjam.snappy.compress_raw(content))


def xerial(content: bytes, header: bytes = XERIAL_HEADER, block_bytes: int = 32 * 1024) -> bytes:
    """Blocks with a length before each, as written by snappy-java."""
    blocks = [raw_snappy(content[start : start + block_bytes]) for start in range(0, len(content), block_bytes)]
    return header + b"".join(struct.pack(">i", len(block)) + block for block in blocks)


WRITERS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gzip": (GZIP, gzip.compress),
    "gzip of two members": (GZIP, lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:])),
    "raw snappy": (SNAPPY, raw_snappy),
    "xerial snappy": (SNAPPY, xerial),
    "xerial snappy of small blocks": (SNAPPY, lambda content: xerial(content, block_bytes=100)),
    "xerial snappy with little-endian versions": (
        SNAPPY,
        lambda content: xerial(content, b"\x82SNAPPY\0" + struct.pack("<ii", 1, 1)),
    ),
    "xerial snappy of two streams": (SNAPPY, lambda content: xerial(content[:9]) + xerial(content[9:])),
    "lz4": (LZ4, lz4.frame.compress),
    "lz4 of independent blocks": (LZ4, lambda content: lz4.frame.compress(content, block_linked=False)),
    "zstd": (ZSTD, zstd.compress),
    "zstd of two frames": (ZSTD, lambda content: zstd.compress(content[:9]) + zstd.compress(content[9:])),
    "zstd of the largest window": (ZSTD, lambda content: zstd.compress(content, level=22)),
}
CODEC_NAMES = {"gzip": GZIP, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}
VALUES = st.lists(st.binary(max_size=50) | st.integers(0, 100_000).map(bytes), min_size=1, max_size=3)


@pytest.mark.parametrize("name", WRITERS)
@given(VALUES)
def test_records_of_each_codec_are_read(name: str, values: list[bytes]) -> None:
    codec, write = WRITERS[name]
    records = [record(value, offset_delta=index) for index, value in enumerate(values)]
    found = read(batch(records, codec=codec, content=write(b"".join(records))) + batch([AFTER]))
    wanted = [*((value, index) for index, value in enumerate(values)), (b"after", 0)]
    assert [(one.value, one.offset) for one in found] == wanted


@pytest.mark.parametrize("codec", CODEC_NAMES.values(), ids=CODEC_NAMES)
@given(data=st.data())
def test_noise_in_place_of_compressed_content_raises_no_other_error(codec: int, data: st.DataObject) -> None:
    """Tries pure noise, and good content with bytes replaced, added, or cut off."""
    (_, write) = data.draw(st.sampled_from([each for each in WRITERS.values() if each[0] == codec]))
    good = write(data.draw(st.binary(min_size=1, max_size=200)))
    place = data.draw(st.integers(0, len(good) - 1))
    noise = data.draw(st.binary(max_size=8))
    content = data.draw(st.sampled_from([noise, good[:place], good[:place] + noise + good[place + 1 :], good + noise]))
    with suppress(CannotDecompress):
        decompress(codec, content)
    for compressed in (codec, 0):
        found = read(batch([b""] * 2, codec=compressed, content=content) + batch([AFTER]))
        assert found[-1].value == b"after"


@example(b"\xff\xff\xff\xff\x0f")  # states a length of 4 GiB, and has no content
@given(st.integers(MAX_BYTES + 1, (1 << 32) - 1).map(lambda length: snappy_length(length) + b"\0a"))
def test_the_length_that_a_snappy_block_states_is_not_believed(content: bytes) -> None:
    for written in (content, XERIAL_HEADER + struct.pack(">i", len(content)) + content):
        with pytest.raises(TooLarge):
            decompress(SNAPPY, written)


def snappy_length(length: int) -> bytes:
    """The length before a raw block: seven bits a byte, the lowest first."""
    written = bytearray()
    while length > 0x7F:
        written.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*written, length])


@pytest.mark.parametrize("name", ["gzip", "raw snappy", "xerial snappy", "lz4", "zstd"])
def test_a_batch_of_the_bound_is_read_and_one_of_a_byte_more_is_left_out_with_a_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (codec, write), largest, larger = WRITERS[name], record(bytes(1000)), record(bytes(1001))
    monkeypatch.setattr("producers.decompress.MAX_BYTES", len(largest))
    good = batch([b""], codec=codec, content=write(largest))
    written = good + batch([b""], codec=codec, content=write(larger))
    assert [len(one.value) for one in read(written, TopicPartition(name, 0))] == [1000]
    assert ["TooLarge" in line.getMessage() for line in caplog.records] == [True]


def test_a_gzip_member_that_is_broken_behind_a_good_one_is_passed_over() -> None:
    good, broken = gzip.compress(b"good"), bytearray(gzip.compress(os.urandom(100_000)))
    broken[60_000] ^= 1
    assert decompress(GZIP, good + bytes(broken)) == b"good"
    with pytest.raises(Broken):
        decompress(GZIP, bytes(broken))


def test_many_small_frames_are_not_copied_over_and_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an earlier version, a megabyte of empty gzip members passed 26 GB to the decoders."""
    given_bytes = 0
    new_decoder = zlib.decompressobj

    class Counting:
        def __init__(self, window: int) -> None:
            self._decoder = new_decoder(window)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._decoder, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            nonlocal given_bytes
            given_bytes += len(data)
            return self._decoder.decompress(data, max_length)

    monkeypatch.setattr("zlib.decompressobj", Counting)
    members = 10_000
    assert decompress(GZIP, gzip.compress(b"") * members + gzip.compress(b"x")) == b"x"
    assert given_bytes < 20_000 * members


MOST_KIB = 160 * 1024
"""Limit for the memory: twice the bound on a decompressed batch, since a growing result may be copied.

Each bomb holds 256 MiB; Snappy's, which compresses less, holds 80 MiB.
"""


def bombs() -> Iterator[tuple[int, bytes]]:
    """Each bomb's codec and content."""
    pieces = [bytes(16 * MIB)] * 16
    deflate = zlib.compressobj(level=1, wbits=31)
    yield GZIP, b"".join([*map(deflate.compress, pieces), deflate.flush()])
    yield GZIP, gzip.compress(pieces[0], 1) * len(pieces)
    yield SNAPPY, XERIAL_HEADER + xerial(pieces[0], b"", MIB) * 5
    with lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB) as frame:
        yield LZ4, b"".join([frame.begin(), *map(frame.compress, pieces), frame.flush()])
    yield ZSTD, zstd.compress(pieces[0]) * len(pieces)
    stream = zstd.ZstdCompressor()
    yield ZSTD, b"".join([*map(stream.compress, pieces), stream.flush()])


def test_small_content_that_becomes_large_takes_little_memory(tmp_path: Path) -> None:
    """Runs in its own process, whose peak memory the system records."""
    asked = []
    for at, (codec, content) in enumerate(bombs()):
        path = tmp_path / str(at)
        path.write_bytes(content)
        asked.append(f"{codec}:{path}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    report = json.loads(done.stdout)
    assert report["errors"] == ["TooLarge"] * len(asked)
    assert report["grown_kib"] < MOST_KIB


def report_on(asked: list[str]) -> dict[str, object]:
    """The error for each `codec:path`, and the memory that decompressing all of them took."""
    before, errors = largest_kib(), []
    for each in asked:
        codec, _, path = each.partition(":")
        with pytest.raises(CannotDecompress) as raised:
            decompress(int(codec), Path(path).read_bytes())
        errors.append(raised.type.__name__)
    return {"errors": errors, "grown_kib": largest_kib() - before}


def largest_kib() -> int:
    """This process's peak memory in KiB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report_on(sys.argv[1:])))
