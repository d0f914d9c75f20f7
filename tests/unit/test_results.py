"""Results on the way to a file or a person, and the record batches that hold them: every codec, and broken ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import stat
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import cramjam
import lz4.frame
import pytest
import typer
from backports import zstd
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record import MemoryRecords

from cli.shared.failures import Failures
from cli.shared.output import OrderedLines, refuse_one_file, written
from cli.take.answers import Answers, as_line, as_text
from producers.decompress import MAX_BYTES, Broken, CannotDecompress, TooLarge, UnknownCodec, decompress
from producers.newest import Moment, Moments, superseded
from producers.receipts import ReceiptEntry
from producers.records import FetchedRecords, RecordConsumer
from producers.results import Settled
from producers.scan import StoredPlace
from producers.selection import is_at
from producers.times import NotATime, parse_time, show_time
from schemas.codec import read_result
from schemas.outcome import Outcome
from schemas.result import Result, ResultError
from tests.record_batches import batch, field, number, record

MANY = 20_000


def result(job_id: str, outcome: Outcome = Outcome.SUCCEEDED) -> Result:
    error = None if outcome is Outcome.SUCCEEDED else ResultError(code="echo", message="it failed")
    return Result(job_id=job_id, outcome=outcome, error=error, text="42", created_at=1)


def test_of_all_results_of_a_time_only_the_outcomes_are_counted_and_no_job_is_kept() -> None:
    answers = Answers(None, None, as_line)
    tracemalloc.start()
    try:
        for number in range(MANY):
            answers.add(result(f"job_{number:060}", Outcome.FAILED if number % 2 else Outcome.SUCCEEDED))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answers.found, answers.summary) == ("20000 results", ["10000 succeeded", "10000 failed"])
    assert kept < MANY * 10, "bytes, less than any id has"


def test_a_named_job_counts_once_with_its_last_outcome_and_one_that_was_not_named_does_not() -> None:
    answers = Answers({"a": None, "b": None}, None, as_line)
    assert [answers.add(result(job_id)) for job_id in ("a", "other", "a")] == [True, False, False]
    assert (answers.found, answers.summary) == ("1 of 2 jobs have a result", ["1 succeeded", "1 without a result"])
    assert (answers.open, answers.well) == (1, False)
    again = Answers({"a": None}, None, as_line)
    for outcome in (Outcome.FAILED, Outcome.EXPIRED, Outcome.SUCCEEDED):
        again.add(result("a", outcome))
    assert (again.summary, again.failed, again.well) == (["1 succeeded"], 0, True)


def entry(line: int, job_id: str, custom_id: str | None = None) -> ReceiptEntry:
    return ReceiptEntry(line=line, job_id=job_id, custom_id=custom_id, tenant="acme", digest="d", at=1)


def told(failures: Failures, capsys: pytest.CaptureFixture[str]) -> list[str]:
    failures.tell()
    return [line.removeprefix("postback: ") for line in capsys.readouterr().err.splitlines()]


def test_jobs_with_one_reason_are_named_in_one_message_by_line_or_by_id(capsys: pytest.CaptureFixture[str]) -> None:
    named: dict[str, ReceiptEntry | None] = {f"j{n}": entry(n, f"j{n}", "mine" if n == 9 else None) for n in range(10)}
    failures = Failures({**named, "plain": None})
    for job_id in ("j9", "j7", "j5", "j3", "j1", "plain"):
        failures.add(job_id, "failed: no" if job_id not in ("j9", "plain") else f"rejected: {job_id}")
    failures.add("j3", "expired: late")
    failures.discard("plain")
    assert told(failures, capsys) == [
        "lines 1, 5, 7: failed: no",
        "line 3: j3 expired: late",
        "line 9 (mine): j9 rejected: j9",
    ]
    failures = Failures({"a": None, "b": None, "c": entry(1, "c"), "d": None})
    for job_id in "dcba":
        failures.add(job_id, "failed: no")
    assert told(failures, capsys) == ["jobs a, b, c and 1 more: failed: no"]


def test_reasons_beyond_those_shown_are_counted_and_only_few_of_very_many_are_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures = Failures(None)
    for index in range(1_500):
        failures.add(f"j{index}", f"failed: {index}")
    lines = told(failures, capsys)
    assert lines[:20] == [f"j{number} failed: {number}" for number in range(20)]
    assert lines[20:] == ["and 981 more"]
    few = Failures({f"j{number}": None for number in range(1_500)})
    for index in range(1_500):
        few.add(f"j{index}", f"failed: {index}")
    assert told(few, capsys)[20:] == ["and 981 more"]


def test_ordered_lines_are_written_in_the_order_of_the_jobs_the_last_of_each_job_once() -> None:
    well, not_well = io.StringIO(), io.StringIO()
    with OrderedLines(["a", "b", "c", "d"]) as ordered:
        for out, line, job_id in (
            (well, "c: é", "c"),
            (not_well, "a: 1", "a"),
            (well, "a: 2", "a"),
            (not_well, "b", "b"),
        ):
            ordered.put(out, line, job_id)
        assert (well.getvalue(), not_well.getvalue()) == ("", "")
        ordered.write()
        ordered.write()
    assert (well.getvalue(), not_well.getvalue()) == ("a: 2\nc: é\n", "b\n")


def test_a_persons_view_has_the_sources_counted_and_no_text_that_steers_the_terminal_or_passes_for_ours() -> None:
    shown = Result(
        job_id="j",
        outcome=Outcome.SUCCEEDED,
        text="42\n\x1b[2Jpostback: 9 of 9 jobs accepted",
        sources=["pmid:1", "https://a.example/"],
        created_at=1,
    )
    assert as_text(shown, entry(7, "j", "q\u202e")).splitlines() == [
        "line 7 (q\\u202e)  j  succeeded  2 sources",
        "    42",
        "    \\u001b[2Jpostback: 9 of 9 jobs accepted",
    ]
    assert as_text(result("k", Outcome.FAILED), None).splitlines() == [
        "k  failed  0 sources",
        "    it failed",
    ]


def test_no_more_results_are_shown_than_a_person_reads() -> None:
    out = io.StringIO()
    answers = Answers({f"j{n}": None for n in range(30)}, out, as_text, most=20)
    for index in range(30):
        answers.add(result(f"j{index}"))
    assert (out.getvalue().count("succeeded"), answers.unwritten) == (20, 10)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "on the way"])
def test_a_full_disk_ends_the_command_with_one_line_that_names_the_file(
    lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, written("--output", Path("/dev/full")) as out:
        answers = Answers(None, out, as_line)
        for _ in range(lines):
            answers.add(result("a"))
    assert ended.value.exit_code == 1
    said = "--output /dev/full: No space left on device; free space there, and run the command again"
    assert capsys.readouterr().err == f"postback: {said}\n"


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let this process write no file of more than 1 MiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("earlier", [None, "of an earlier run\n"])
@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_keeps_the_earlier_file_and_the_lines_that_were_written(
    earlier: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, part = tmp_path / "results.jsonl", tmp_path / "results.jsonl.part"
    if earlier is not None:
        output.write_text(earlier)
    with pytest.raises(typer.Exit) as ended, written("--output", output, "free 2 GB") as out:
        assert out is not None
        for number in range(1_000_000):
            out.write(f"{number:0999}\n")
    assert ended.value.exit_code == 1
    assert (output.read_text() if output.exists() else None) == earlier
    assert part.read_text().splitlines() == [f"{number:0999}" for number in range(1048)]
    assert set(tmp_path.iterdir()) == {part, *([output] if earlier is not None else [])}
    kept = f"{part} has the 1048 lines that were written"
    if earlier is not None:
        kept = f"{output} is as it was, and {kept}"
    assert capsys.readouterr().err == f"postback: --output {output}: File too large; {kept}; free 2 GB\n"


def test_an_output_file_is_replaced_at_the_end_and_keeps_its_mode(tmp_path: Path) -> None:
    output, link = tmp_path / "results.jsonl", tmp_path / "link"
    output.write_text("of an earlier run\n")
    output.chmod(0o640)
    link.symlink_to(output)
    with written("--output", link) as out:
        assert out is not None
        out.write("new\n")
        out.flush()
        assert output.read_text() == "of an earlier run\n"
    assert (output.read_text(), stat.S_IMODE(output.stat().st_mode), link.is_symlink()) == ("new\n", 0o640, True)
    assert set(tmp_path.iterdir()) == {output, link}


@pytest.mark.parametrize("lines", [0, 2])
def test_a_command_that_ends_on_the_way_keeps_the_earlier_file_and_names_the_new_lines(
    lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, part = tmp_path / "results.jsonl", tmp_path / "results.jsonl.part"
    output.write_text("of an earlier run\n")
    with pytest.raises(KeyboardInterrupt), written("--output", output) as out:
        assert out is not None
        out.write("line\n" * lines)
        raise KeyboardInterrupt
    assert output.read_text() == "of an earlier run\n"
    assert set(tmp_path.iterdir()) == ({output, part} if lines else {output})
    said = f"postback: --output: {output} is as it was, and {part} has the 2 lines that were written\n"
    assert capsys.readouterr().err == (said if lines else "")


def test_no_output_is_an_input_or_another_output_by_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, hard, absent = tmp_path / "jobs.jsonl", tmp_path / "hard", tmp_path / "absent"
    jobs.write_text("{}\n")
    hard.hardlink_to(jobs)
    for outputs, inputs in (
        ({"--out": hard}, {"FILE": str(jobs)}),
        ({"--a": None, "--out": tmp_path / "." / "absent"}, {"FILE": f"{tmp_path}/../{tmp_path.name}/absent"}),
        ({"FILE": jobs, "--out": hard}, {"--other": None}),
        ({"FILE": absent, "--out": absent}, {}),
    ):
        with pytest.raises(typer.Exit) as ended:
            refuse_one_file(outputs, inputs)
        assert ended.value.exit_code == 2
        said = capsys.readouterr().err
        assert said == f"postback: --out {outputs['--out']}: is also the file of FILE; name another file\n"
    refuse_one_file({"--a": jobs, "--b": absent}, {"--c": "-", "--d": None})
    refuse_one_file({"--a": Path("/dev/null"), "--b": Path("/dev/null")}, {"FILE": "/dev/null"})


# -- the newest of a job's results -------------------------------------------------------------------------------------


RECORDS = st.lists(
    st.tuples(st.sampled_from(["acme", "globex"]), st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 1)),
    max_size=30,
)
"""Tenant, job id, partition and milliseconds since the previous record."""


@given(RECORDS, st.randoms())
def test_all_results_but_the_newest_of_each_job_are_superseded_however_they_are_read(
    records: list[tuple[str, str, int, int]], order: random.Random
) -> None:
    settled, at_ms = [], 1_000
    newest: dict[tuple[str, str], Moment] = {}
    for offset, (tenant, job_id, partition, later) in enumerate(records):
        at_ms += later
        moment = Moment(at_ms, partition, offset)
        settled.append((tenant, job_id, moment))
        newest[tenant, job_id] = max(moment, newest.get((tenant, job_id), moment))
    order.shuffle(settled)
    counting = {StoredPlace(moment.partition, moment.offset) for moment in newest.values()}
    places = {StoredPlace(moment.partition, moment.offset) for _, _, moment in settled}
    assert superseded(settled) == places - counting


def test_in_one_partition_the_later_record_is_newer_though_the_broker_s_clock_was_set_back() -> None:
    moments = Moments()
    first, second = moments.of(5_000, StoredPlace(0, 1)), moments.of(4_000, StoredPlace(0, 2))
    assert second > first
    # Partition 0's clock was set back, so its times are raised; a time in partition 1 stays as it is.
    assert moments.of(4_500, StoredPlace(1, 9)) < first


def settled(job_id: str, outcome: Outcome, at_ms: int, partition: int = 0, offset: int = 0) -> Settled:
    return Settled("acme", result(job_id, outcome), Moment(at_ms, partition, offset))


CAME = [
    settled("a", Outcome.REJECTED, 1_000, 0, 0),
    settled("b", Outcome.SUCCEEDED, 1_000, 1, 0),
    settled("c", Outcome.FAILED, 1_000, 2, 0),
    settled("a", Outcome.SUCCEEDED, 2_000, 1, 1),
    settled("b", Outcome.FAILED, 2_000, 0, 1),
]


@pytest.mark.parametrize("seed", range(5))
def test_while_results_arrive_each_job_keeps_one_line_in_one_file_and_counts_once(tmp_path: Path, seed: int) -> None:
    came = random.Random(seed).sample(CAME, len(CAME))
    output, errors = tmp_path / "output", tmp_path / "errors"
    with written("--output", output) as out, written("--errors", errors) as apart:
        answers = Answers(dict.fromkeys("abc"), out, as_line, apart)
        assert sum(answers.take([each], "acme") for each in came) == 3
        assert answers.take([CAME[0]], "globex") == 0
        answers.settle()
    lines = (path.read_bytes().splitlines() for path in (output, errors))
    well, not_well = ([read_result(line).job_id for line in each] for each in lines)
    assert (well, sorted(not_well)) == (["a"], ["b", "c"])
    assert answers.summary == ["1 succeeded", "2 failed"]
    assert not answers.well


def test_lines_in_a_pipe_cannot_be_taken_back_so_the_command_says_that_the_last_ones_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("cli.take.answers.without_lines", lambda out, numbers: False)
    answers = Answers(dict.fromkeys("abc"), pipe, as_line)
    answers.take(CAME[:4], "acme")
    answers.settle()
    answers.tell()
    lines = [read_result(line.encode()) for line in pipe.getvalue().splitlines()]
    assert [(line.job_id, line.outcome) for line in lines if line.job_id == "a"][-1] == ("a", "succeeded")
    assert capsys.readouterr().err.splitlines() == [
        "postback: 1 jobs were answered again meanwhile: the last line of each counts",
        "postback: c failed: it failed",
    ]


# -- a replay's selection ----------------------------------------------------------------------------------------------


def test_an_endpoint_is_a_url_or_an_origin_with_all_of_its_urls_in_any_spelling() -> None:
    same = {
        ("https://h/in?t=1", "https://h/in?t=1"),
        ("https://h/in", "https://h"),
        ("https://h:443/in", "https://h"),
        ("https://h/in", "HTTPS://H:443"),
        ("https://bücher.example/in", "https://xn--bcher-kva.example"),
    }
    others = {
        ("https://h/in?t=1", "https://h/in"),
        ("https://h:8443/in", "https://h"),
        ("http://h/in", "https://h"),
        *(("https://h/in", endpoint) for endpoint in ("https://h?", "https://h/", "h")),
        ("http://[", "x://["),
        (None, "https://h"),
    }
    assert {pair for pair in same | others if is_at(*pair)} == same


# -- times -------------------------------------------------------------------------------------------------------------


NOW = 1_800_000_000.0
"""15 January 2027, 08:00 UTC."""


def test_a_time_is_iso_8601_in_utc_by_default_or_an_age_and_can_be_read_back() -> None:
    seconds: dict[str, float] = {"-90s": -90, "-30m": -1_800, "-2h": -7_200, "-7d": -604_800, " -1w ": -604_800}
    seconds |= {"2027-01-15T08:00:00Z": 0, "2027-01-15T08:00": 0, "2027-01-15T09:00:00+01:00": 0}
    seconds |= {"2027-01-15": -8 * 3600, "2027-01-15 08:00:00.250": 0.25}
    found = {text: (parse_time(text, NOW) - NOW * 1000) / 1000 for text in seconds}
    assert found == seconds
    for text in ("", "2h", "-2", "-2y", "--2h", "-9999999w", "yesterday", "1800000000", "2027-13-01"):
        with pytest.raises(NotATime, match="ISO 8601"):
            parse_time(text, NOW)
    assert show_time(round(NOW * 1000) + 5) == "2027-01-15T08:00:00.005Z"
    assert parse_time(show_time(1_800_000_000_005), NOW) == 1_800_000_000_005


PLACE = TopicPartition("a", 3)
NAMES = st.binary(max_size=6) | st.text(max_size=4).map(str.encode) | st.just(b"tenant")
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=6)), max_size=4)
CONTENT = st.none() | st.binary(max_size=20)
CODECS = {0: bytes, 1: gzip.compress, 3: lz4.frame.compress}
AFTER = record(b"after")


def read(content: bytes, place: TopicPartition = PLACE) -> list[Any]:
    """Records of a fetch answer, read as kafka-python's consumer reads them."""
    records: list[Any] = FetchedRecords(0, place, MemoryRecords(content)).take()
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
        content = batch([one], codec=1, content=gzip.compress(one[:3]) + gzip.compress(one[3:]) + more)
        assert [each.value for each in read(content)] == [b"v"]


def test_a_batch_that_cannot_be_read_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    content = batch([record(b"v"), b"\x00"]) + batch([b"\x00"]) + batch([AFTER], codec=7) + batch([AFTER])
    for _ in range(2):
        assert [one.value for one in read(content, TopicPartition("warned", 3))] == [b"v", b"after"]
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
    for block in (content, XERIAL_HEADER + struct.pack(">i", len(content)) + content):
        with pytest.raises(TooLarge):
            decompress(SNAPPY, block)


def snappy_length(length: int) -> bytes:
    """The length before a raw block: seven bits a byte, the lowest first."""
    content = bytearray()
    while length > 0x7F:
        content.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*content, length])


@pytest.mark.parametrize("name", ["gzip", "raw snappy", "xerial snappy", "lz4", "zstd"])
def test_a_batch_of_the_bound_is_read_and_one_of_a_byte_more_is_left_out_with_a_warning(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (codec, write), largest, larger = WRITERS[name], record(bytes(1000)), record(bytes(1001))
    monkeypatch.setattr("producers.decompress.MAX_BYTES", len(largest))
    good = batch([b""], codec=codec, content=write(largest))
    content = good + batch([b""], codec=codec, content=write(larger))
    assert [len(one.value) for one in read(content, TopicPartition(name, 0))] == [1000]
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
