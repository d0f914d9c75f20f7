"""The channel of deltas: bounds of the publisher, and what a listener hears of several attempts with losses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisAway

from schemas.result import MAX_RESULT_BYTES
from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from workers.system import deltas
from workers.system.deltas import MOST_IN_A_BATCH, UNHEARD_SECONDS, DeltaPublisher, Listener, Speaker, channel_of

Fate = Literal["heard", "unheard", "answer lost", "lost"]
"""The fate of a batch: delivered; delivered to no listener; delivered, but Redis's answer is lost; not delivered."""
TEXTS = st.text(alphabet="ab", min_size=1, max_size=6)


class StandIn:
    """Stands in for the client of Redis. It gives the messages to a listener, or fails."""

    def __init__(self) -> None:
        self.fate: Fate = "heard"
        self.batches: list[list[tuple[str, str]]] = []
        self.listener = Listener()

    def pipeline(self, *, transaction: bool) -> StandIn:
        assert not transaction
        self._asked: list[tuple[str, str]] = []
        return self

    async def __aenter__(self) -> StandIn:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    def publish(self, channel: str, message: str) -> None:
        self._asked.append((channel, message))

    async def execute(self) -> list[int]:
        self.batches.append(self._asked)
        if self.fate in ("heard", "answer lost"):
            for _, message in self._asked:
                self.listener.take(*json.loads(message))
        if self.fate in ("answer lost", "lost"):
            raise RedisAway("no answer")
        return [int(self.fate == "heard")] * len(self._asked)


class Channel:
    """A publisher with a stand-in for Redis, and a clock that the test moves."""

    def __init__(self) -> None:
        self.redis, self.clock = StandIn(), HandClock()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deltas, "_redis", lambda *_, **__: self.redis)
            self.publisher = DeltaPublisher("redis://", self.clock)

    def publish(self, fate: Fate = "heard") -> bool:
        self.redis.fate = fate
        return asyncio.run(self.publisher.publish())

    def said(self) -> list[Any]:
        """The offset and the piece of each message of the last batch."""
        return [json.loads(message)[1:] for _, message in self.redis.batches[-1]]


@pytest.fixture
def channel() -> Channel:
    return Channel()


def test_the_channels_of_two_jobs_differ() -> None:
    names = {channel_of(*parts) for parts in (("", "ab", "c"), ("a", "b", "c"), ("", "a", "b:c"), ("", "a", "c"))}
    assert len(names) == 4


def test_a_slow_redis_makes_pieces_larger_and_never_more(channel: Channel) -> None:
    speaker = channel.publisher.speaker("one")
    for length in range(1, 1001):
        speaker("x" * length)
    channel.publish()
    assert channel.said() == [[0, "x" * 1000]]
    speaker("x" * 1000 + "y")
    channel.publish()
    assert channel.said() == [[1000, "y"]]


def test_a_batch_has_a_bounded_number_of_pieces_and_the_next_one_has_the_others(channel: Channel) -> None:
    for number in range(MOST_IN_A_BATCH + 1):
        channel.publisher.speaker(f"{number}")("text")
    channel.publish()
    channel.publish()
    assert [len(batch) for batch in channel.redis.batches] == [MOST_IN_A_BATCH, 1]


def test_a_piece_that_redis_did_not_take_leaves_later_with_what_follows(
    channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    speaker = channel.publisher.speaker("one")
    speaker("a")
    assert [channel.publish("lost"), channel.publish("lost")] == [False, False]
    speaker("ab")
    assert (channel.publish(), channel.said()) == (True, [[0, "ab"]])
    assert (caplog.text.count("deltas-away"), caplog.text.count("deltas-back")) == (1, 1)


def test_a_piece_that_nothing_heard_is_a_part_of_the_next_one_after_a_pause(channel: Channel) -> None:
    speaker = channel.publisher.speaker("one")
    speaker("a")
    channel.publish("unheard")
    speaker("ab")
    channel.publish()
    assert len(channel.redis.batches) == 1
    channel.clock.sleep(UNHEARD_SECONDS)
    speaker("abc")
    channel.publish()
    assert channel.said() == [[0, "abc"]]


def test_an_ended_job_publishes_nothing(channel: Channel) -> None:
    speaker = channel.publisher.speaker("one")
    speaker("a")
    channel.publish("lost")
    speaker.end()
    channel.publish()
    assert len(channel.redis.batches) == 1


def test_a_listener_takes_no_more_than_a_result_can_have() -> None:
    listener = Listener()
    listener.take("1", 0, "x" * MAX_RESULT_BYTES)
    listener.take("1", MAX_RESULT_BYTES, "y")
    assert listener.text == "x" * MAX_RESULT_BYTES


FATES = st.sampled_from(["heard", "unheard", "answer lost", "lost"])
STEPS = st.lists(st.tuples(st.integers(0, 2), TEXTS, st.none() | FATES), min_size=1, max_size=12)
"""The number of a speaker, its text or what the text gains, and the fate of the batch that leaves then."""


@settings(max_examples=drawn(300))
@given(STEPS, st.booleans())
def test_a_listener_hears_the_begin_of_one_attempt_whatever_is_lost(
    steps: Sequence[tuple[int, str, Fate | None]], begins_again: bool
) -> None:
    """Three attempts speak at the same time, as after a rebalance that a worker does not notice."""
    channel = Channel()
    speakers = [channel.publisher.speaker("one") for _ in range(3)]
    texts, spoken = ["", "", ""], {""}
    for number, text, fate in steps:
        texts[number] = text if begins_again else texts[number] + text
        spoken.add(texts[number])
        speakers[number](texts[number])
        if fate is not None:
            channel.clock.sleep(UNHEARD_SECONDS)
            channel.publish(fate)
        heard = channel.redis.listener.text
        assert any(each.startswith(heard) for each in spoken)


@settings(max_examples=drawn(100))
@given(st.lists(st.tuples(TEXTS, FATES), max_size=8))
def test_a_listener_hears_all_of_one_attempt_once_a_batch_is_heard(steps: Sequence[tuple[str, Fate]]) -> None:
    channel = Channel()
    speaker: Speaker = channel.publisher.speaker("one")
    text = ""
    for more, fate in [*steps, ("the end", "heard")]:
        text += more
        speaker(text)
        channel.clock.sleep(UNHEARD_SECONDS)
        channel.publish(fate)
    assert channel.redis.listener.text == text
