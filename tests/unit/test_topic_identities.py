"""A topic recreated under its name is noticed when a partition opens or its offsets go back, and in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.settings import KafkaSettings
from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import Intake, Settler, bare_stage, reread
from workers.kafka.topics import BrokerAway
from workers.roles import topic_watch
from workers.roles.topic_watch import TopicWatch
from workers.stage.fetching import SILENCE_SECONDS
from workers.stage.partition import Partition, Phase
from workers.stage.progress import Progress, topic_mark
from workers.stage.record import Record
from workers.stage.stage import Stage
from workers.stage.topic_ids import Identities, TopicMadeAnew

OLD, NEW = topic_mark("old"), topic_mark("new")


class Cluster:
    """A cluster that knows each topic's UUID; if `ids` is None, no broker answers."""

    def __init__(self, **ids: str) -> None:
        self.ids: dict[str, str] | None = ids
        self.asked = 0

    def __call__(self, topics: Iterable[str], seconds: float) -> dict[str, str]:
        self.asked += 1
        if self.ids is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return {name: self.ids[name] for name in topics if name in self.ids}


def stage_of(
    cluster: Cluster,
    intake: Intake,
    settler: Settler | None = None,
    clock: HandClock | None = None,
    **began_with: str,
) -> tuple[Stage, Partition]:
    """A stage with one assigned partition that is being fetched; `began_with` are the UUIDs that its process knows."""
    stage, _ = bare_stage(intake, clock or HandClock(), settler=settler, identities=Identities(cluster, began_with))
    stage.assigned([("requests", 0)])
    (partition,) = stage.held.partitions.values()
    partition.paused = False
    return stage, partition


def records(*offsets: int) -> list[Record]:
    return [Record("requests", 0, offset, b"") for offset in offsets]


def test_progress_of_the_same_topic_is_continued_and_marked_with_the_topic_again() -> None:
    intake = Intake()
    intake.progress = Progress(5, 0b10, topic=OLD)
    stage, partition = stage_of(Cluster(requests="old"), intake)
    stage.take(records(5, 6, 7), [])
    assert partition.ledger.taken == {5, 7}
    assert Progress.decode(5, partition.progress([]).encode()).topic == OLD


def test_progress_of_an_earlier_release_is_taken_for_the_topic_that_is_there() -> None:
    intake = Intake()
    intake.progress = Progress(5)
    stage, partition = stage_of(Cluster(requests="new"), intake)
    stage.take(records(5), [])
    assert partition.ledger.taken == {5}
    assert partition.progress([]).topic == NEW


def test_progress_of_another_topic_counts_for_nothing_and_all_is_read_from_the_beginning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    intake = Intake()
    intake.progress = Progress(50, 0b10, open=True, topic=OLD)
    settler = Settler()
    stage, partition = stage_of(Cluster(requests="new"), intake, settler)
    stage.take(records(50, 51), [("requests", 0, 52)])
    assert (partition.phase, partition.ledger.base, partition.ledger.taken) == (Phase.OPEN, 0, frozenset())
    stage.regulate()
    stage.regulate()
    assert intake.resumed == [("requests", 0, 0)]
    stage.take(records(0, 1), [])
    assert (partition.ledger.taken, partition.careful_records) == (frozenset({0, 1}), 0)
    reread(stage, settler)  # the group has no commit for the new topic yet
    assert (partition.phase, partition.ledger.taken) == (Phase.OPEN, frozenset({0, 1}))


def test_a_topic_that_the_process_knew_by_another_uuid_ends_the_process_before_a_record_is_taken() -> None:
    stage, partition = stage_of(Cluster(requests="new"), Intake(), requests="old")
    stage.take(records(0), [])
    assert (partition.phase, stage.stopping is not None) == (Phase.ASSIGNED, True)
    assert isinstance(stage.error, TopicMadeAnew)


def test_a_record_after_a_silence_asks_for_the_uuid_although_its_offset_goes_on() -> None:
    """A new topic may already have more records than the old one had, so its offsets need not go back."""
    cluster, clock = Cluster(requests="old"), HandClock()
    stage, partition = stage_of(cluster, Intake(), clock=clock)
    stage.take(records(7, 8), [("requests", 0, 9)])
    asked = cluster.asked
    clock.sleep(SILENCE_SECONDS / 2)
    stage.take(records(9), [])
    assert cluster.asked == asked
    clock.sleep(SILENCE_SECONDS)
    stage.take(records(10, 11), [])
    assert (cluster.asked, partition.ledger.taken) == (asked + 1, frozenset({7, 8, 9, 10, 11}))
    cluster.ids = {"requests": "new"}
    clock.sleep(SILENCE_SECONDS)
    stage.take(records(12), [])
    assert isinstance(stage.error, TopicMadeAnew)
    assert partition.ledger.taken == {7, 8, 9, 10, 11}


@pytest.mark.parametrize("delivered", [(records(3), []), (records(9, 0), []), ([], [("requests", 0, 0)])])
def test_a_partition_that_goes_back_without_a_seek_asks_for_the_uuid(delivered: tuple[list[Record], Any]) -> None:
    cluster = Cluster(requests="old")
    stage, partition = stage_of(cluster, Intake())
    stage.take(records(7, 8), [])
    asked = cluster.asked
    stage.take(*delivered)  # the log was truncated, but the topic's UUID is the same, so the stage goes on
    assert (cluster.asked, stage.stopping) == (asked + 1, None)
    stage.take(records(9), [])
    cluster.ids = {"requests": "new"}
    stage.take(*delivered)
    assert stage.stopping is not None
    assert partition.ledger.taken <= {3, 7, 8, 9, 0}


def test_only_the_first_record_of_an_empty_partition_asks_for_the_uuid() -> None:
    cluster = Cluster(requests="old")
    stage, partition = stage_of(cluster, Intake())
    stage.take([], [("requests", 0, 0)])
    stage.take(records(0), [])
    asked = cluster.asked
    stage.take(records(1), [("requests", 0, 2)])
    stage.take(records(2), [("requests", 0, 3)])
    assert (asked, cluster.asked, partition.ledger.taken) == (2, 2, frozenset({0, 1, 2}))


def test_a_partition_that_goes_back_by_a_seek_does_not_ask_for_the_uuid() -> None:
    cluster = Cluster(requests="old")
    stage, partition = stage_of(cluster, Intake())
    stage.take(records(7, 8), [])
    partition.rewind_to = 7
    stage.regulate()
    stage.regulate()
    stage.take(records(7), [])
    assert cluster.asked == 1


@pytest.mark.parametrize("ids", [None, {}], ids=["no answer", "the topic is gone"])
def test_a_partition_waits_unopened_until_kafka_states_the_topics_uuid(ids: dict[str, str] | None) -> None:
    cluster, intake = Cluster(requests="old"), Intake()
    cluster.ids = ids
    stage, partition = stage_of(cluster, intake)
    stage.take(records(0), [])
    assert (partition.phase, partition.rewind_to, stage.stopping) == (Phase.ASSIGNED, 0, None)
    cluster.ids = {"requests": "old"}
    stage.regulate()
    stage.regulate()
    stage.take(records(0), [])
    assert partition.ledger.taken == {0}


async def test_a_topic_that_is_only_written_to_ends_the_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, str] | BrokerAway] = [BrokerAway("away"), {"results": "old"}, {}, {"results": "new"}]
    answers = iter(said)
    watch = TopicWatch(KafkaSettings(), {"results": "old"}, look_seconds=0)
    seen: list[list[str]] = []

    async def known_ids(*_: object) -> dict[str, str]:
        seen.append(watch.reasons())
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(topic_watch, "known_ids", known_ids)
    with pytest.raises(TopicMadeAnew, match="the topic results was deleted and created again"):
        await asyncio.wait_for(watch.ended(), 30)
    gone = ["the topic results does not exist any more; `postback topics create` makes it"]
    assert (seen, watch.alive) == ([[], [], [], gone], True)
