"""What commands that look at all dead letters or results keep of each."""

from __future__ import annotations

import sys
import tracemalloc

from producers.dead_letters import _Marks
from producers.scan import Place, Range, Stored
from producers.undelivered import _event

LETTERS = 20_000


def marked(partition: int, offset: int, at_ms: int = 1_700_000_000_000) -> Stored:
    return Stored("marks", Place(0, 0), at_ms, str(Place(partition, offset)).encode(), b"{}", [])


def result(tenant: str, webhook_id: str) -> Stored:
    headers = [("tenant", tenant.encode()), ("webhook-id", webhook_id.encode())]
    return Stored("results", Place(0, 0), 1, None, b"{}", headers)


def test_a_mark_is_known_by_the_place_of_its_letter_and_others_are_passed_over() -> None:
    marks = _Marks([Range("letters", 0, 10, 13), Range("letters", 2, 0, 1)])
    for record in (
        *(marked(0, 11, 5), marked(0, 9), marked(0, 13), marked(1, 11), marked(2, 0, 6), marked(2, 0, 7)),
        Stored("marks", Place(0, 0), 1, None, b"{}", []),
        Stored("marks", Place(0, 0), 1, b"\xff:1", b"{}", []),
    ):
        marks.add(record)
    assert [marks.of(Place(0, offset)) for offset in (10, 11, 12)] == [None, 5, None]
    assert marks.of(Place(2, 0)) == 7


def test_a_mark_takes_eight_bytes_and_one_of_a_letter_that_is_gone_takes_none() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        marks = _Marks([Range("letters", 0, LETTERS, 2 * LETTERS)])
        for offset in range(2 * LETTERS):
            marks.add(marked(0, offset))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert marks.of(Place(0, LETTERS)) is not None
    assert after - before < 9 * LETTERS


def test_an_event_is_a_number_that_no_other_tenant_and_id_have() -> None:
    events = [
        _event(result(*named))
        for named in (("acme", "msg_1"), ("acme", "msg_2"), ("globex", "msg_1"), ("acmem", "sg_1"), ("ac", "memsg_1"))
    ]
    assert len(set(events)) == len(events)
    assert _event(result("acme", "msg_1")) == events[0]
    assert max(map(sys.getsizeof, events)) <= 48
