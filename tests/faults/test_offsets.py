"""Offsets and commits: markers, metadata, lost answers, rebalances, and records that state wrong offsets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path

from confluent_kafka import Consumer, Producer, TopicPartition

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.faults.link import Link
from tests.product import eventually
from tests.record_batches import batch, produce, record
from workers.stage.progress import Progress


def job(number: int) -> dict[str, int]:
    return {"id": number, "ms": 1}


def test_a_record_that_states_another_offset_hides_no_other_record(ledgers: Ledgers, processes: StageProcesses) -> None:
    """In an earlier version, a stated offset beyond the partition's end kept all later jobs there from starting."""

    def stated(*deltas: int) -> bytes:
        """A batch of jobs with these offsets, relative to the batch's base offset."""
        return batch([record(json.dumps(job(next(numbers))).encode(), offset_delta=delta) for delta in deltas])

    numbers = iter(range(100))
    ledgers.submit([job(next(numbers)) for _ in range(5)], partitions=1)
    processes.start("a")
    ledgers.wait_for_results(5, 60)
    for deltas in ((1,), (1000,), (-1, 10**9), (3, 3)):
        produce(ledgers.kafka.bootstrap_servers, [(ledgers.kafka.topics.requests(), stated(*deltas))])
    ledgers.submit([job(next(numbers)) for _ in range(5)], partitions=1)
    ledgers.wait_for_results(16, 60)
    processes.terminate("a")
    processes.start("b")
    ledgers.submit([job(next(numbers)) for _ in range(5)], partitions=1)
    ledgers.wait_for_results(21, 60)
    ledgers.assert_each_exactly_once(21)


# -- refused by the group's coordinator ----------------------------------------------------------------------------


def test_partitions_whose_committed_offsets_were_refused_are_read_later(
    ledgers: Ledgers, processes: StageProcesses, link: Link
) -> None:
    """The client gives such partitions up without an end: it asks no second time, and reads nothing."""
    processes.kafka = processes.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{link.port}"})
    link.refused_offsets = 1
    jobs = ledgers.submit({"id": number, "ms": 1} for number in range(40))
    processes.start("a")
    ledgers.wait_for_results(jobs, 60)
    ledgers.assert_each_exactly_once(jobs)
    assert link.refused_offsets == 0
    assert processes.terminate("a") == 0


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


def test_a_worker_that_gives_partitions_away_is_kept_busy_by_those_it_keeps(
    ledgers: Ledgers, processes: StageProcesses, tmp_path: Path
) -> None:
    """Each partition's first job waits for the test's file, so revoked partitions cannot finish draining earlier."""
    over = tmp_path / "over"
    held = ({"id": n, "ms": 0, "until": str(over)} for n in range(4))
    numbers = count(4)

    def more(amount: int) -> Iterator[dict[str, object]]:
        return ({"id": number, "ms": 400} for number in islice(numbers, amount))

    jobs = ledgers.submit(chain(held, more(396)))
    processes.window, processes.drain_seconds = 20, 120
    processes.start("a")
    ledgers.wait_for_results(40, 60)
    processes.start("b")
    before = Counter[int]()

    def two_stand_still_while_two_go_on() -> bool:
        nonlocal before, jobs
        results = ledgers.results()
        if jobs - len(results) < 200:  # with too few unanswered jobs, all partitions would stand still
            jobs += ledgers.submit(more(200))
        now = Counter(int(job) % 4 for job in results)
        grown = sorted(now[partition] - before[partition] for partition in range(4))
        if grown[1] > 0:
            before = now  # compare again later, since a revoked partition gets results until it is drained
        return grown[1] == 0 and grown[2] >= 15

    eventually(two_stand_still_while_two_go_on, 90, "the partitions that stay stand still while the others are drained")
    assert "partitions-revoked" not in processes.log("a")
    over.touch()
    eventually(lambda: "partitions-revoked" in processes.log("a"), 60, "nothing is given to the newcomer")
    ledgers.wait_for_results(jobs, 120)
    ledgers.assert_each_exactly_once(jobs)


def test_records_that_retention_removed_are_reported_and_the_rest_is_handled(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    jobs = ledgers.submit(({"id": n, "ms": 1} for n in range(40)), partitions=1)
    processes.start("a")
    ledgers.wait_for_results(jobs, 30)
    assert processes.terminate("a") == 0
    ledgers.submit(({"id": n, "ms": 1} for n in range(40, 80)), partitions=1)
    ledgers.remove_before(70)
    processes.start("b")
    ledgers.wait_for_results(jobs + 10, 30)
    losses = [json.loads(line) for line in processes.log("b").splitlines() if "retention-loss" in line]
    assert [loss["postback.records"] for loss in losses] == [30]
