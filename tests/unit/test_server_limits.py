"""The number of requests that a server gets at once, learned from the server's counts or from its refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from tests.drawn import drawn
from workers.engines.openai_http.limits import FIRST, QUEUE_LOOKS, AnswerLimit, Limits, ServerLoad
from workers.engines.openai_http.server import new_session

MOST = 256


def refused(limit: AnswerLimit, in_flight: int | None = None) -> int:
    limit.refused(limit.begin(), limit.number if in_flight is None else in_flight)
    return limit.number


def answered(limit: AnswerLimit, count: int) -> int:
    for _ in range(count):
        limit.answered(limit.number)
    return limit.number


def settled() -> AnswerLimit:
    """A limit of 8 that grows by one a round: the server has answered 16 at once, and refused one of them."""
    limit = AnswerLimit(FIRST, MOST)
    limit.answered(1)
    assert refused(limit) == 8
    return limit


def told(limits: Limits, *looks: tuple[int, int], in_flight: int = MOST) -> tuple[int, int]:
    """Take the counts (running, waiting) of each look at the server; return the places and the limit."""
    for running, waiting in looks:
        limits.told(ServerLoad(running, waiting), in_flight)
    return limits.places, limits.number


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "first"), [(1, 1), (8, 8), (256, FIRST)])
def test_a_limit_begins_modestly_and_never_above_its_bound(most: int, first: int) -> None:
    assert AnswerLimit(FIRST, most).number == first


def test_before_the_first_refusal_each_round_of_answers_doubles_the_limit() -> None:
    """If the limit grew by one a round, a server with 256 places would stay mostly idle for 240 rounds."""
    limit = AnswerLimit(FIRST, MOST)
    assert [answered(limit, limit.number) for _ in range(5)] == [32, 64, 128, 256, 256]


def test_after_a_refusal_the_limit_grows_by_one_in_a_round_of_answers() -> None:
    limit = settled()
    assert answered(limit, 7) == 8
    assert answered(limit, 2) == 9
    assert answered(limit, 10) == 10


def test_an_answer_while_slots_are_free_raises_no_limit() -> None:
    limit = AnswerLimit(FIRST, MOST)
    for _ in range(100):
        limit.answered(FIRST - 1)
    assert limit.number == FIRST


def test_the_refusals_of_one_round_trip_halve_the_limit_once() -> None:
    limit = AnswerLimit(FIRST, MOST)
    sent = [limit.begin() for _ in range(FIRST)]
    for number in sent:
        limit.refused(number, FIRST)
    assert limit.number == FIRST // 2
    later = limit.begin()
    limit.refused(sent[-1], 8)
    assert limit.number == 8
    limit.refused(later, 8)
    assert limit.number == 4


def test_a_refusal_says_nothing_while_the_requests_of_a_halved_limit_are_still_in_flight() -> None:
    """The refused requests are sent again while the server is as full as before, so a refusal shows nothing new."""
    limit = settled()
    assert [refused(limit, in_flight) for in_flight in (16, 12, 9)] == [8, 8, 8]
    assert refused(limit, 8) == 4


def test_after_an_outage_the_limit_is_soon_back_at_half_of_its_former_value() -> None:
    """If the limit grew by one a round, a server that answers in 5 s would get 256 requests only after 20 minutes."""
    limit = AnswerLimit(256, MOST)
    answered(limit, 1)
    assert [refused(limit) for _ in range(9)] == [128, 64, 32, 16, 8, 4, 2, 1, 1]
    assert answered(limit, 127) == 128
    assert answered(limit, 128) == 128
    assert answered(limit, 1) == 129


def test_a_timeout_counts_as_a_refusal_only_while_the_limit_is_in_use() -> None:
    """If each timeout counted, a job that hangs a server now and then would leave a quiet worker a limit of one."""
    limit = AnswerLimit(FIRST, MOST)
    limit.timed_out(limit.begin(), FIRST - 1)
    assert limit.number == FIRST
    limit.timed_out(limit.begin(), FIRST)
    assert limit.number == FIRST // 2


def test_the_limit_never_falls_below_one_and_recovers() -> None:
    limit = settled()
    assert [refused(limit) for _ in range(5)] == [4, 2, 1, 1, 1]
    assert answered(limit, 1) == 2


# -- counts --------------------------------------------------------------------------------------------------------


def test_a_server_that_tells_its_counts_has_all_places_until_requests_wait() -> None:
    assert told(Limits(MOST), (1, 0), in_flight=1) == (MOST, MOST)


def test_the_limit_is_the_running_requests_and_the_few_that_wait_at_an_engine_in_the_worker_too() -> None:
    assert told(Limits(MOST), *[(64, 192)] * QUEUE_LOOKS) == (64, 72)
    assert told(Limits(MOST), *[(16, 240)] * QUEUE_LOOKS) == (16, 18)


def test_one_look_at_the_start_of_a_burst_is_no_queue() -> None:
    assert told(Limits(MOST), *[(20, 236)] * (QUEUE_LOOKS - 1), (256, 0)) == (MOST, MOST)


def test_a_look_at_the_end_of_a_batch_lowers_no_limit() -> None:
    """A real server with four places reported these counts, and then got only one request at a time for a second."""
    assert told(Limits(MOST), (4, 36), (4, 36), (1, 31), in_flight=40) == (4, 5)


def test_a_server_without_running_requests_says_nothing() -> None:
    assert told(Limits(MOST), *[(0, 256)] * 9, (0, 0)) == (MOST, MOST)


def test_a_limit_that_the_server_runs_grows_up_to_the_setting() -> None:
    limits = Limits(MOST)
    places, number = told(limits, *[(64, 192)] * QUEUE_LOOKS)
    seen = []
    while number < MOST:
        places, number = told(limits, (number, 0), in_flight=number)
        seen.append(places)
    assert seen[:3] == [72, 80, 88]
    assert told(limits, *[(MOST, 0)] * 3) == (MOST, MOST)


def test_a_worker_takes_its_part_of_a_server_that_others_use_too() -> None:
    assert told(Limits(MOST), *[(256, 256)] * QUEUE_LOOKS, in_flight=128) == (64, 72)


def test_a_request_for_several_answers_counts_once() -> None:
    """The server generates 40 of the 80 answers to 20 requests, so 10 requests run."""
    assert told(Limits(MOST), *[(40, 40)] * QUEUE_LOOKS, in_flight=20) == (10, 12)


def test_requests_that_the_server_has_not_counted_yet_do_not_raise_the_limit() -> None:
    limits = Limits(MOST)
    told(limits, *[(64, 192)] * QUEUE_LOOKS)
    assert told(limits, (30, 0), in_flight=72) == (64, 72)


@pytest.mark.parametrize("shares", [[256, 16], [256, 256, 256, 256], [8, 100, 200, 31]])
def test_workers_that_share_a_server_get_equal_parts_and_leave_a_short_queue(shares: list[int]) -> None:
    server = 256
    workers = [Limits(MOST) for _ in shares]
    for limits, share in zip(workers, shares, strict=True):
        told(limits, *[(share, 1)] * QUEUE_LOOKS, in_flight=share)
    for _ in range(2000):
        in_flight = [limits.number for limits in workers]
        running = min(server, sum(in_flight))
        for limits, own in zip(workers, in_flight, strict=True):
            limits.told(ServerLoad(running, sum(in_flight) - running), own)
    in_flight = [limits.number for limits in workers]
    assert server <= sum(in_flight) <= server + 16 * len(shares)
    assert max(in_flight) - min(in_flight) <= server // len(shares) // 4


# -- both ----------------------------------------------------------------------------------------------------------


def test_a_gateway_that_refuses_requests_limits_a_server_that_tells_its_counts() -> None:
    limits = Limits(MOST)
    told(limits, (64, 0), in_flight=64)
    answered(limits.answers, 1)
    assert refused(limits.answers) == 128
    assert told(limits, (128, 0), in_flight=128) == (128, 128)


def test_a_server_that_tells_its_counts_no_longer_keeps_its_limit_and_may_raise_it_by_answers() -> None:
    limits = Limits(MOST)
    told(limits, *[(64, 192)] * QUEUE_LOOKS)
    limits.untold()
    assert (limits.places, limits.number) == (72, 72)
    limits.untold()
    assert answered(limits.answers, 8) == limits.number == 80
    assert told(limits, (80, 0), in_flight=80) == (MOST, MOST)


EVENTS = st.one_of(
    st.tuples(st.just("told"), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 9000)),
    st.tuples(st.just("untold")),
    st.tuples(st.just("answered"), st.integers(1, 300)),
    st.tuples(st.just("refused"), st.integers(1, 9000), st.integers(0, 3)),
)


@settings(max_examples=drawn(200))
@given(st.integers(1, 8192), st.lists(EVENTS, max_size=60))
def test_after_any_counts_and_refusals_the_limit_is_between_one_and_the_setting(
    most: int, events: list[tuple[str, int, int, int]]
) -> None:
    limits = Limits(most)
    for kind, *numbers in events:
        if kind == "told":
            limits.told(ServerLoad(numbers[0], numbers[1]), numbers[2])
        elif kind == "untold":
            limits.untold()
        elif kind == "answered":
            answered(limits.answers, numbers[0])
        else:
            limits.answers.timed_out(limits.answers.begin(), numbers[0])
            limits.answers.refused(limits.answers.begin() - numbers[1], numbers[0])
        assert 1 <= limits.places <= limits.number <= most


async def test_the_cookies_of_a_server_are_not_kept() -> None:
    """A server can send a new cookie with each answer, and kept cookies would fill the worker's memory."""
    async with new_session({}, 1) as session:
        for number in range(3):
            session.cookie_jar.update_cookies({f"cookie{number}": "x"}, URL("http://models.example/v1"))
        assert not list(session.cookie_jar)
