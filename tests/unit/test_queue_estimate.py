"""The estimated wait of a callback that a busy destination turns away, as a table."""

from __future__ import annotations

from workers.delivery.queue_estimate import QueueEstimate


def crowd_of(
    away_each_second: int, served_each_second: int, seconds: int, start: int = 0
) -> tuple[QueueEstimate, list[float]]:
    """The estimate, and the wait that the last turned-away callback of each second gets."""
    crowd, told = QueueEstimate(), []
    for second in range(start, start + seconds):
        for _ in range(served_each_second):
            crowd.serve(float(second))
        told.append([crowd.turn_away(float(second)) for _ in range(away_each_second)][-1])
    return crowd, told


def test_the_estimate_of_a_new_crowd_is_unknown() -> None:
    assert crowd_of(100, 10, 5)[1] == [0.0] * 5


def test_without_served_records_the_estimate_is_unknown() -> None:
    assert set(crowd_of(100, 0, 100)[1]) == {0.0}


def test_the_last_one_s_turn_comes_when_all_are_served_that_were_turned_away_in_its_round() -> None:
    _, told = crowd_of(100, 10, 200)
    for start in range(10, 200, 5):
        rounds = told[start : start + 5]
        assert rounds == sorted(rounds)
        assert 8 < rounds[0] < 13
        assert 45 < rounds[-1] < 60


def test_a_crowd_after_a_pause_is_a_new_one() -> None:
    crowd, told = crowd_of(100, 10, 20)
    assert told[-1] > 0
    assert crowd.turn_away(35.0) == 0.0


def test_faster_service_shortens_the_estimate_within_a_minute_or_two() -> None:
    crowd, _ = crowd_of(100, 10, 200)
    for second in range(200, 320):
        for _ in range(100):
            crowd.serve(float(second))
        told = [crowd.turn_away(float(second)) for _ in range(100)]
    assert told[-1] < 10
