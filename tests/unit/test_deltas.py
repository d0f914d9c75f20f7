"""The channel of deltas: bounds of the publisher, and what a listener hears of several attempts with losses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisAway

from gateway.door import streamed
from gateway.door.streamed import ChatEvents
from schemas.result import MAX_RESULT_BYTES
from telemetry.hand_clock import HandClock
from tests.asking import request_of
from tests.drawn import drawn
from workers.engines import answers
from workers.engines.answers import Answer
from workers.engines.families import families
from workers.system import deltas
from workers.system.deltas import MOST_IN_A_BATCH, UNHEARD_SECONDS, DeltaPublisher, Listener, Speaker, channel_of

Fate = Literal["heard", "unheard", "heard elsewhere", "answer lost", "lost"]
"""The fate of a batch: delivered; delivered to no listener; delivered to another listener alone; delivered, but Redis's
answer is lost; not delivered.
"""
TEXTS = st.text(alphabet="ab", min_size=1, max_size=6)


class StandIn:
    """Stands in for the client of Redis. It gives the messages to a listener, or fails."""

    def __init__(self) -> None:
        self.fate: Fate = "heard"
        self.batches: list[list[tuple[str, str]]] = []
        self.listener = Listener()
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens between a batch and Redis's answer."""

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
        self.meanwhile()
        return [int(self.fate.startswith("heard"))] * len(self._asked)


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
        speaker("x", length - 1)
    channel.publish()
    assert channel.said() == [[0, "x" * 1000]]
    speaker("y", 1000)
    channel.publish()
    assert channel.said() == [[1000, "y"]]


def test_a_batch_has_a_bounded_number_of_pieces_and_the_next_one_has_the_others(channel: Channel) -> None:
    for number in range(MOST_IN_A_BATCH + 1):
        channel.publisher.speaker(f"{number}")("text", 0)
    channel.publish()
    channel.publish()
    assert [len(batch) for batch in channel.redis.batches] == [MOST_IN_A_BATCH, 1]


def test_a_piece_that_redis_did_not_take_leaves_later_with_what_follows(
    channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    speaker = channel.publisher.speaker("one")
    speaker("a", 0)
    assert [channel.publish("lost"), channel.publish("lost")] == [False, False]
    speaker("b", 1)
    assert (channel.publish(), channel.said()) == (True, [[0, "ab"]])
    assert (caplog.text.count("deltas-away"), caplog.text.count("deltas-back")) == (1, 1)


def test_a_piece_that_nothing_heard_is_a_part_of_the_next_one_after_a_pause(channel: Channel) -> None:
    speaker = channel.publisher.speaker("one")
    speaker("a", 0)
    channel.publish("unheard")
    speaker("b", 1)
    channel.publish()
    assert len(channel.redis.batches) == 1
    channel.clock.sleep(UNHEARD_SECONDS)
    speaker("c", 2)
    channel.publish()
    assert channel.said() == [[0, "abc"]]


@pytest.mark.parametrize(("offset", "expected"), [(1, [1, "b"]), (0, [0, "b"])])
def test_a_piece_that_comes_before_redis_has_answered_is_in_the_next_message(
    channel: Channel, offset: int, expected: list[Any]
) -> None:
    speaker = channel.publisher.speaker("one")
    speaker("a", 0)
    channel.redis.meanwhile = lambda: speaker("b", offset)
    channel.publish()
    assert channel.said() == [[0, "a"]]
    channel.redis.meanwhile = lambda: None
    channel.publish()
    assert channel.said() == [expected]


def test_an_ended_job_publishes_nothing(channel: Channel) -> None:
    speaker = channel.publisher.speaker("one")
    speaker("a", 0)
    channel.publish("lost")
    speaker.end()
    channel.publish()
    assert len(channel.redis.batches) == 1


def test_a_listener_takes_no_more_than_a_result_can_have() -> None:
    listener = Listener()
    listener.take("1", 0, "x" * MAX_RESULT_BYTES)
    listener.take("1", MAX_RESULT_BYTES, "y")
    assert listener.text_from(0) == "x" * MAX_RESULT_BYTES


FATES = st.sampled_from(["heard", "unheard", "answer lost", "lost"])
STEPS = st.lists(
    st.tuples(st.integers(0, 2), TEXTS, st.none() | FATES | st.just("heard elsewhere")), min_size=1, max_size=12
)
"""The number of a speaker, its text or what the text gains, and the fate of the batch that leaves then."""


@settings(max_examples=drawn(300))
@given(STEPS, st.booleans())
@example([(0, "a", "heard"), (0, "b", "heard elsewhere"), (0, "a", "heard")], False)
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
        speakers[number](text, 0 if begins_again else len(texts[number]) - len(text))
        if fate is not None:
            channel.clock.sleep(UNHEARD_SECONDS)
            channel.publish(fate)
        heard = channel.redis.listener.text_from(0)
        assert any(each.startswith(heard) for each in spoken)


@settings(max_examples=drawn(100))
@given(st.lists(st.tuples(TEXTS, FATES), max_size=8))
def test_a_listener_hears_all_of_one_attempt_once_a_batch_is_heard(steps: Sequence[tuple[str, Fate]]) -> None:
    channel = Channel()
    speaker: Speaker = channel.publisher.speaker("one")
    text = ""
    for more, fate in [*steps, ("the end", "heard")]:
        speaker(more, len(text))
        text += more
        channel.clock.sleep(UNHEARD_SECONDS)
        channel.publish(fate)
    assert channel.redis.listener.text_from(0) == text


class Counted(StringIO):
    """A text that counts the characters that are read from all such texts."""

    read_characters = 0

    def read(self, size: int | None = -1, /) -> str:
        found = super().read(size)
        Counted.read_characters += len(found)
        return found

    def getvalue(self) -> str:
        found = super().getvalue()
        Counted.read_characters += len(found)
        return found


async def test_a_long_answer_is_read_a_few_times_and_not_once_for_each_of_its_pieces(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece once copied the whole text before it, from the server's stream to the client's."""
    for module in (answers, deltas, streamed):
        monkeypatch.setattr(module, "StringIO", Counted)
    Counted.read_characters = 0
    pieces = ["<think>So.</think>", *("0123456789" for _ in range(2000))]
    answer = Answer(request_of(prompt="Why?"), families()["deepseek-r1"].reasoning)
    channel.redis.listener = Listener()
    speaker, told = channel.publisher.speaker("one"), 0
    events, sent = ChatEvents(lambda _: {}, "j", 1, "m", with_usage=False), 0
    for piece in pieces:
        answer.choice().say(piece)
        gained = answer.grown()
        speaker(gained, told)
        told += len(gained)
        channel.redis.fate = "heard"
        await channel.publisher.publish()
        heard = channel.redis.listener.text_from(sent)
        sent += len(heard)
        events.delta(heard)
    assert channel.redis.listener.text_from(0) == answer.completion().text == "0123456789" * 2000
    assert Counted.read_characters < 10 * told
