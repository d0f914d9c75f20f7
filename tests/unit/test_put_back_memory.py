"""Memory that commands keep for each dead letter or result."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.redrive_marks import RedriveMarks, mark
from operators.undelivered import event_of
from producers.scan import Range, Stored, StoredPlace
from schemas.topics import Topics

LETTERS = 20_000


AT_MS = 1_700_000_000_000


def marked(partition: int, offset: int, at_ms: int = AT_MS, value: bytes | None = b"{}") -> Stored:
    return Stored("marks", StoredPlace(0, 0), at_ms, str(StoredPlace(partition, offset)).encode(), value, [])


def letter(partition: int, offset: int, at_ms: int = AT_MS) -> Stored:
    return Stored("letters", StoredPlace(partition, offset), at_ms, None, b"{}", [])


def result(tenant: str, webhook_id: str) -> Stored:
    headers = [("tenant", tenant.encode()), ("webhook-id", webhook_id.encode())]
    return Stored("results", StoredPlace(0, 0), 1, None, b"{}", headers)


def test_a_mark_is_known_by_the_place_of_its_letter_and_others_are_passed_over() -> None:
    marks = RedriveMarks([Range("letters", 0, 10, 13), Range("letters", 2, 0, 1)])
    for record in (
        *(marked(0, 11), marked(0, 9), marked(0, 13), marked(1, 11), marked(2, 0, AT_MS + 6), marked(2, 0, AT_MS + 7)),
        Stored("marks", StoredPlace(0, 0), 1, None, b"{}", []),
        Stored("marks", StoredPlace(0, 0), 1, b"\xff:1", b"{}", []),
    ):
        marks.add(record)
    assert [marks.of(letter(0, offset)) for offset in (10, 11, 12)] == [None, AT_MS, None]
    assert marks.of(letter(2, 0)) == AT_MS + 7


@pytest.mark.parametrize(
    ("marked_ms", "value", "counts"),
    [
        (AT_MS + 5, b'{"letter_at":%d}' % AT_MS, True),
        (AT_MS - 50_000, b'{"letter_at":%d}' % AT_MS, True),  # the clock of the broker that stamped the mark is behind
        (AT_MS + 5, b'{"letter_at":%d}' % (AT_MS - 900), False),  # the mark belongs to an earlier letter at this place
        (AT_MS - 70_000, b'{"letter_at":%d}' % AT_MS, False),
        (AT_MS + 5, b"{}", True),  # an earlier release wrote this mark
        (AT_MS - 70_000, b"{}", False),
        (AT_MS + 5, None, True),
        (1 << 46, None, True),
        (AT_MS + 5, b"[1]", True),
        (AT_MS + 5, b'{"letter_at":"x"}', True),
        (AT_MS + 5, b'{"letter_at":' + b"9" * 99 + b"}", False),
    ],
)
def test_a_mark_of_an_earlier_letter_at_the_same_place_counts_for_nothing(
    marked_ms: int, value: bytes | None, counts: bool
) -> None:
    """`dead_letters` was deleted and recreated, so a new letter has an old letter's partition and offset."""
    marks = RedriveMarks([Range("letters", 0, 0, 1)])
    marks.add(marked(0, 0, marked_ms, value))
    assert marks.of(letter(0, 0)) == (marked_ms if counts else None)


@given(st.integers(AT_MS - 10**9, AT_MS + 10**9), st.integers(0, 10**10))
def test_a_mark_that_is_written_for_a_letter_counts_for_it(letter_ms: int, later_ms: int) -> None:
    marks, place = RedriveMarks([Range("letters", 0, 0, 1)]), StoredPlace(0, 0)
    written = mark(Topics(), place, letter_ms, "rejected", [], letter_ms + later_ms)
    marks.add(Stored("marks", place, letter_ms + later_ms, written.key, written.value, []))
    assert marks.of(letter(0, 0, letter_ms)) == letter_ms + later_ms


def test_a_mark_takes_eight_bytes_and_a_mark_of_a_deleted_letter_takes_none() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        marks = RedriveMarks([Range("letters", 0, LETTERS, 2 * LETTERS)])
        for offset in range(2 * LETTERS):
            marks.add(marked(0, offset))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert marks.of(letter(0, LETTERS)) is not None
    assert after - before < 9 * LETTERS


def test_each_pair_of_tenant_and_id_has_a_number_of_its_own() -> None:
    events = [
        event_of(result(*named))
        for named in (("acme", "msg_1"), ("acme", "msg_2"), ("globex", "msg_1"), ("acmem", "sg_1"), ("ac", "memsg_1"))
    ]
    assert len(set(events)) == len(events)
    assert event_of(result("acme", "msg_1")) == events[0]
    assert max(map(sys.getsizeof, events)) <= 48
