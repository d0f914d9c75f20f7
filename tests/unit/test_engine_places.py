"""The number of requests that vLLM runs at once, learned from its counts after each step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from workers.engines.places import STEPS, Places


def loaded(limit: int, ranks: int = 1) -> Places:
    places = Places(None)
    places.loaded(limit, range(ranks))
    return places


def stepped(places: Places, *steps: tuple[int, int, int], rank: int = 0) -> int:
    """Take steps with these counts (running, waiting, answers), then count an idle engine; return the places."""
    for running, waiting, answers in steps:
        places.counted(rank, running, waiting)
        places.answered(answers)
    places.counted(rank, 0, 0)
    return places.number


def test_before_the_load_the_places_follow_from_the_settings() -> None:
    assert (Places(None).number, Places(16).number) == (1, 16)


def test_max_num_seqs_applies_to_each_data_parallel_rank() -> None:
    assert loaded(256, ranks=8).number == 2048


def test_an_engine_in_which_nothing_waits_has_max_num_seqs_places() -> None:
    assert stepped(loaded(256), (0, 0, 1), (64, 0, 0), (200, 0, 9)) == 256


def test_while_requests_wait_the_running_ones_are_the_places() -> None:
    assert stepped(loaded(256), (64, 136, 0)) == 64


def test_requests_that_a_step_ended_had_places_too() -> None:
    assert stepped(loaded(256), (64, 8, 0), (0, 8, 64), *[(64, 8, 0)] * 3) == 64
    assert stepped(loaded(256), (0, 8, 64)) == 64


def test_the_places_follow_longer_requests_of_which_the_cache_holds_fewer() -> None:
    assert stepped(loaded(256), (64, 8, 0), *[(20, 8, 0)] * (STEPS - 1)) == 64
    assert stepped(loaded(256), (64, 8, 0), *[(20, 8, 0)] * STEPS) == 20


def test_an_empty_queue_keeps_the_places_and_more_running_requests_make_more() -> None:
    assert stepped(loaded(256), (64, 8, 0), (60, 0, 0), (0, 0, 0)) == 64
    assert stepped(loaded(256), (64, 8, 0), (72, 0, 0)) == 72
    assert stepped(loaded(256), (64, 8, 0), (72, 0, 0), (63, 9, 1)) == 64


def test_each_rank_has_places_of_its_own() -> None:
    places = loaded(256, ranks=2)
    assert stepped(places, (64, 8, 0), rank=1) == 256 + 64
    assert stepped(places, (30, 1, 0), rank=0) == 30 + 64
    places.loaded(256, range(2))
    assert places.number == 512


@settings(max_examples=drawn(100))
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))))
def test_whatever_is_counted_each_rank_has_one_to_max_num_seqs_places(steps: list[tuple[int, int, int, int]]) -> None:
    places = loaded(256, ranks=3)
    for rank, running, waiting, answers in steps:
        places.counted(rank, running, waiting)
        places.answered(answers)
        assert 3 <= places.number <= 3 * 256
