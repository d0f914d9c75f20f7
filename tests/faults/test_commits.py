"""Transaction markers in the log, the metadata in a commit, and a commit whose answer is lost."""

from __future__ import annotations

import json

from confluent_kafka import Consumer, Producer, TopicPartition

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.faults.link import Link
from workers.stage.progress import Progress


def test_markers_and_aborted_records_do_not_hold_back_the_base(ledgers: Ledgers, processes: StageProcesses) -> None:
    producer = Producer({**ledgers.kafka.client_config(), "transactional.id": "feed", "retry.backoff.ms": 5})
    producer.init_transactions(20)
    number = 0
    for turn in range(60):
        producer.begin_transaction()
        for _ in range(20):
            job = {"id": number if turn % 3 else -1, "ms": 20}
            producer.produce(ledgers.kafka.topics.requests(), json.dumps(job).encode(), partition=number % 4)
            number += 1 if turn % 3 else 0
        if turn % 3:
            producer.commit_transaction(20)
        else:
            # Flush, because unsent records would never reach the log. The flush also avoids librdkafka's issue 4849.
            producer.flush(20)
            producer.abort_transaction(20)
    processes.start("a", "b")
    ledgers.wait_for_results(number, 60)
    ledgers.assert_each_exactly_once(number)


def test_a_commit_with_undecodable_metadata_is_survived(ledgers: Ledgers, processes: StageProcesses) -> None:
    jobs = ledgers.submit({"id": number, "ms": 1} for number in range(40))
    topic, group = ledgers.kafka.topics.requests(), f"{ledgers.kafka.topic_prefix}inference"
    stranger = Consumer({**ledgers.kafka.client_config(), "group.id": group})
    stranger.commit(offsets=[TopicPartition(topic, 0, 0, "kept by another program")], asynchronous=False)
    stranger.close()
    processes.start("a")
    ledgers.wait_for_results(jobs, 40)
    ledgers.assert_each_exactly_once(jobs)
    assert "ledger-undecodable" in processes.log("a")


def test_records_done_above_the_base_are_not_done_again_by_the_next_owner(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    jobs = ledgers.submit(({"id": number, "ms": 600_000 if number == 0 else 1} for number in range(100)), partitions=1)
    processes.drain_seconds = 0.5
    processes.start("a")
    ledgers.wait_for_results(jobs - 1, 40)
    processes.terminate("a")
    committed = _committed(ledgers)
    assert committed.base == 0
    assert committed.done.bit_count() == jobs - 1
    assert not committed.open
    processes.start("b")
    # This job is the last in the only partition, so its result shows that the next owner has passed all others.
    ledgers.submit([{"id": jobs, "ms": 1}], partitions=1)
    ledgers.wait_for_results(jobs, 60)
    processes.kill("b")
    assert ledgers.results() == {str(number): 1 for number in range(1, jobs + 1)}


def _committed(ledgers: Ledgers) -> Progress:
    consumer = Consumer({**ledgers.kafka.client_config(), "group.id": f"{ledgers.kafka.topic_prefix}inference"})
    (found,) = consumer.committed([TopicPartition(ledgers.kafka.topics.requests(), 0)], timeout=20)
    consumer.close()
    return Progress.decode(found.offset, found.metadata or "")


# -- the lost answer -----------------------------------------------------------------------------------------------

BLACK_SECONDS = 9.0
"""The link's outage: longer than every timeout of the settler."""


def test_a_commit_whose_answer_is_lost_for_longer_than_every_timeout_is_not_made_twice(
    ledgers: Ledgers, processes: StageProcesses, link: Link
) -> None:
    ledgers.set_session(45)
    processes.kafka = processes.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{link.port}"})
    jobs = ledgers.submit({"id": number, "ms": 40} for number in range(800))
    processes.window = 20
    processes.start("a")
    ledgers.wait_for_results(100, 30)
    link.lose_an_answer(BLACK_SECONDS)
    ledgers.wait_for_results(jobs, 90)
    ledgers.assert_each_exactly_once(jobs)
    assert link.lost == 1
    assert "partitions-lost" not in processes.log("a")
    assert processes.terminate("a") == 0
