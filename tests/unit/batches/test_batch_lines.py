"""The lines of a batch's input: read in pieces, checked one by one, cut into ranges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.checking import Checked, check_file
from gateway.batches.lines import lines_of
from gateway.batches.ranges import (
    MOST_BYTES,
    MOST_LINES,
    InvalidRange,
    LineRange,
    cut,
    job_id,
    read_range,
    write_range,
)
from gateway.view.stored_jobs import line_of
from tests.unit.batches.batch_rig import CHAT, jsonl, line, lines

BAD_LINES: list[tuple[Any, str, str | None]] = [
    (b"{", "invalid_json_line", None),
    (b"", "invalid_json_line", None),
    (b"[1]", "invalid_request_line", None),
    (b"\xff", "invalid_json_line", None),
    ({**line(7), "prompt": "a job beside the line"}, "invalid_request_line", None),
    ({"prompt": "a job"}, "invalid_request_line", None),
    (line(7, url="/v1/responses"), "invalid_url", "url"),
    (line(7, method="GET"), "invalid_method", "method"),
    ({name: value for name, value in line(7).items() if name != "method"}, "invalid_method", "method"),
    (line(7, custom_id=None), "missing_required_parameter", "custom_id"),
    (line(7, custom_id="row-1"), "duplicate_custom_id", "custom_id"),
    (line(7, body={"model": "echo"}), "missing_required_parameter", "body.messages"),
    (line(7, body={**line(7)["body"], "n": 17}), "invalid_value", "body.n"),
    (line(7, body={**line(7)["body"], "temperature": 99}), "invalid_value", "body.temperature"),
    (line(7, body="x"), "invalid_value", "body"),
    (b'{"custom_id": "' + b"x" * 600_000 + b'"}', "line_too_large", None),
]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.fixed_dictionaries({}, optional=dict.fromkeys(LineRange.model_fields, JSON))


def check(content: bytes, endpoint: str = CHAT) -> Checked:
    return check_file(pieces(content, 1000), endpoint, lambda job: None)


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.mark.parametrize(("bad", "code", "param"), BAD_LINES)
def test_a_bad_line_is_named_with_its_number_and_member(bad: Any, code: str, param: str | None) -> None:
    content = bad if isinstance(bad, bytes) else json.dumps(bad).encode()

    [error] = check(lines(3) + content + b"\n" + jsonl([line(8)])).errors

    assert (error.code, error.line, error.param) == (code, 4, param)
    assert error.message.startswith("Line 4")
    assert "question" not in error.message


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_is_refused(content: bytes) -> None:
    assert [error.code for error in check(content).errors] == ["empty_file"]


def test_only_the_first_hundred_errors_are_listed() -> None:
    assert [error.line for error in check(b"x\n" * 3000).errors] == list(range(1, 101))


def test_a_batch_may_have_no_more_than_fifty_thousand_lines() -> None:
    small = b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"prompt":"x"}}\n'
    content = b"".join(small % number for number in range(50_001))

    checked = check(content, "/v1/completions")

    assert [(error.code, error.line) for error in checked.errors] == [("too_many_lines", 50_001)]


@given(st.binary(max_size=300), st.integers(1, 40))
def test_lines_are_those_of_the_whole_content_in_any_pieces(content: bytes, size: int) -> None:
    content = content.removeprefix(b"\xef\xbb\xbf")
    wanted = content.split(b"\n")
    wanted = wanted if wanted[-1] else wanted[:-1]

    found = list(lines_of(pieces(content, size)))

    assert [each.content for each in found] == [each.strip() for each in wanted]
    assert [each.number for each in found] == list(range(len(wanted)))
    assert b"".join(content[each.start : each.end] for each in found) == content


@given(st.lists(st.binary() | st.sampled_from([json.dumps(line(n)).encode() for n in range(3)]), max_size=8))
def test_noise_is_named_line_by_line_and_raises_nothing(some: list[bytes]) -> None:
    checked = check(b"\n".join(some))

    assert checked.errors or checked.total == sum(each.lines for each in checked.ranges)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("custom_id", "method", "url", "body"), JSON)), JSON)
def test_a_line_of_any_json_is_a_job_or_is_named(document: dict[str, Any], member: Any) -> None:
    whole = line(0, body={**line(0)["body"], "metadata": member, "temperature": member})

    for one in (document, whole, {**whole, **document}):
        errors = check(json.dumps(one).encode()).errors
        assert all(error.line in (1, None) for error in errors)


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=30) | st.just([10] * 1203))
def test_ranges_are_adjacent_and_bounded(sizes: list[int]) -> None:
    content = b"".join(b"x" * (size - 1) + b"\n" for size in sizes)

    found = list(cut(lines_of(pieces(content, 100_000))))

    assert sum(one.lines for one in found) == len(sizes)
    assert max(one.lines for one in found) <= MOST_LINES
    assert max(one.length for one in found) <= MOST_BYTES
    assert b"".join(content[one.start : one.start + one.length] for one in found) == content
    assert [one.first for one in found] == [sum(each.lines for each in found[:at]) for at in range(len(found))]


@given(st.binary() | RECORDS.map(lambda record: json.dumps(record).encode()))
def test_any_record_is_a_range_or_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRange, match="range"):
        read_range(value)


def test_a_range_reads_back() -> None:
    ids = {"batch_id": "batch_" + "0" * 32, "file_id": "file-" + "1" * 32, "tenant": "acme"}
    one = LineRange(**ids, first=500, lines=3, start=7, length=90)

    assert read_range(write_range(one)) == one


@given(st.text() | st.integers(0, 99_999).map(lambda number: job_id("batch_" + "a" * 32, number)))
def test_only_a_lines_own_id_names_its_batch_and_line(identifier: str) -> None:
    found = line_of(identifier)

    assert found is None or job_id(*found) == identifier
