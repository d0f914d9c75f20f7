"""The queue for the embedding model: the newest request is next, and if time is short, the oldest are evicted."""

from __future__ import annotations

from workers.enrichment.choosing.newest_first import NewestFirst


def line_of(*names: str, one_seconds: float | None = None) -> NewestFirst[str]:
    line: NewestFirst[str] = NewestFirst()
    if one_seconds is not None:
        line.served(one_seconds)
    for name in names:
        assert line.put(name, 100) == []
    return line


def test_the_newest_request_is_next() -> None:
    line = line_of("first", "second")
    assert [line.next(), line.next()] == ["second", "first"]
    assert not line


def test_all_requests_wait_until_the_time_of_one_is_known() -> None:
    line = line_of(*map(str, range(50)))
    assert len(line) == 50


def test_the_oldest_requests_are_evicted_if_the_queue_is_longer_than_their_time() -> None:
    line = line_of("first", "second", "third", one_seconds=0.5)
    assert line.put("fourth", 1.0) == ["first", "second"]
    assert [line.next(), line.next()] == ["fourth", "third"]


def test_a_single_request_waits_however_long_it_takes() -> None:
    line = line_of("first", one_seconds=5)
    assert line.put("second", 1.0) == ["first"]
    assert line.next() == "second"


def test_the_time_of_a_request_is_learned_from_served_ones() -> None:
    line = line_of(one_seconds=1.0)
    for _ in range(20):
        line.served(0.01)
    for name in map(str, range(50)):
        assert line.put(name, 1.0) == []


def test_a_waiter_that_leaves_is_not_next() -> None:
    line = line_of("first", "second")
    line.leave("second")
    line.leave("nobody")
    assert line.clear() == ["first"]
    assert not line
