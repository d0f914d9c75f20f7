"""`postback replay --undelivered`: after an outage all missed events come, and no other comes twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from cli.devkit.receiver import Behaviour
from cli.operations.replay import Counts, Replay
from cli.operations.topics import create_topics
from cli.operations.undelivered import CallbackStanding
from producers.scan import Scanner
from producers.selection import Selection
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.fleet_here import FleetHere, running_here
from tests.postback_command import environment_of, postback_here
from tests.product import PARTITIONS, Callbacks, eventually

pytestmark = pytest.mark.broker

HOOK = "https://hooks.example/in"
LONG_TIER_SECONDS = 600.0
UNDELIVERED = Selection(tenant="default", undelivered=True)


def put(kafka: KafkaSettings, topic: str, event: str, url: str = HOOK, value: bytes | None = None, **more: str) -> int:
    """Write a record about an event to partition 0: a result or its later fate. Return its offset."""
    headers = {"webhook-id": f"msg_{event}", "job-id": event, "callback-url": url}
    headers |= {name.replace("_", "-"): said for name, said in more.items()}
    producer, offsets = Producer(kafka.client_config()), list[int]()
    producer.produce(
        topic,
        result(event) if value is None else value,
        event,
        0,
        headers=list(headers.items()),
        on_delivery=lambda error, message: offsets.append(message.offset() or 0),
    )
    assert producer.flush(20) == 0
    return offsets[0]


def result(event: str, text: str = "Paris") -> bytes:
    return write_result(Result(job_id=event, outcome=Outcome.SUCCEEDED, text=text, created_at=1_700_000_000))


def attempt(kafka: KafkaSettings, event: str, error: str | None) -> None:
    put(kafka, kafka.topics.attempts, event, value=json.dumps({"error": error}).encode())


def letter(kafka: KafkaSettings, event: str, source: str, offset: int, value: bytes | None = None) -> None:
    where = {"source_topic": source, "source_partition": "0", "source_offset": str(offset)}
    put(kafka, kafka.topics.dead_letters, event, value=value, reason="callback_exhausted", **where)


def commit(kafka: KafkaSettings, bases: dict[str, int]) -> None:
    """Commit delivery's progress: its base in partition 0 of each topic."""
    places = [TopicPartition(topic, 0, base) for topic, base in bases.items()]
    asked = ConsumerGroupTopicPartitions(f"{kafka.topic_prefix}delivery", places)
    admin = AdminClient(kafka.client_config())

    def is_committed() -> bool:
        """True if committed: a new broker has no coordinator at first, and answers each partition with that error."""
        [done] = admin.alter_consumer_group_offsets([asked]).values()
        return all(place.error is None for place in done.result(20).topic_partitions)

    eventually(is_committed, 30, "the progress is not committed")


def standings(kafka: KafkaSettings, selection: Selection = UNDELIVERED) -> tuple[list[str], dict[str, int], int]:
    """Return the events to be put back, the number of other events by standing, and the number of marked letters."""
    with Scanner(kafka) as scanner:
        replay = Replay(kafka, scanner, selection, SystemClock())
        groups = list(replay.returning(Counts()))
        counts = replay.count()
    assert counts.count == len(groups)
    assert counts.letters == sum(len(marks) for _, *marks in groups)
    return [(group[0].key or b"").decode() for group in groups], dict(counts.held), counts.letters


# -- the product ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet_here(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[FleetHere]:
    kafka = fleet.model_copy(update={"tier_delays_seconds": (0.3, LONG_TIER_SECONDS), "partitions": PARTITIONS})
    create_topics(kafka)
    with running_here(kafka, tmp_path) as started:
        yield started
    topic = kafka.topics.tier(LONG_TIER_SECONDS)
    admin = AdminClient(kafka.client_config())
    admin.delete_topics([topic])[topic].result(20)


@pytest.fixture
def away(fleet_here: FleetHere) -> Iterator[Callbacks]:
    callbacks = Callbacks(fleet_here.keyring)
    callbacks.up()
    callbacks.down()  # the port is reserved now, and refuses connections
    yield callbacks
    callbacks.end()


def test_after_an_outage_missed_results_are_called_back_once_and_no_others(
    fleet_here: FleetHere, away: Callbacks
) -> None:
    kafka, callbacks, env = fleet_here.kafka, fleet_here.callbacks, environment_of(fleet_here.kafka)

    def replay(*arguments: str) -> list[str]:
        done = postback_here("replay", "--tenant", "default", "--undelivered", *arguments, env=env)
        assert done.returncode == 0, done.stderr
        return [line.removeprefix("postback: ") for line in done.stderr.splitlines()]

    callbacks.up()
    delivery = fleet_here.deliver("d1")
    delivered, missed, waiting = (
        [f"{what}-{number}" for number in range(3)] for what in ("delivered", "missed", "waiting")
    )
    for name in delivered:
        put(kafka, kafka.topics.results, name, callbacks.url)
    for name in waiting:
        put(kafka, kafka.topics.results, name, away.url)
    fleet_here.wait_for_callbacks(3, 60)
    callbacks.down()
    callbacks.up(Behaviour(status=410))
    for name in missed:
        put(kafka, kafka.topics.results, name, callbacks.url)

    def in_the_long_tier() -> int:
        return len(fleet_here.read(kafka.topics.tier(LONG_TIER_SECONDS)))

    eventually(lambda: len(fleet_here.dead_letters()) == 3 and in_the_long_tier() == 3, 60, "not all have come so far")
    assert delivery.terminate() == 0
    put(kafka, kafka.topics.results, "untouched", callbacks.url)  # delivery has not seen this result yet
    callbacks.down()
    callbacks.up()
    assert "3 match too and have an endpoint that is disabled: `postback endpoints enable` comes first" in replay(
        "--dry-run"
    )
    assert postback_here("endpoints", "enable", callbacks.url, env=env).returncode == 0

    called_before = len(callbacks.received)
    expected = [
        "3 results match and were not delivered",
        f"  3 to {callbacks.url.removesuffix('/hook?token=secret')}",
        "3 dead letters belong to these results, and are put back with them",
        "3 match too and were delivered",
        "4 match too and wait for an attempt, which is left to delivery: --waiting calls them back at once",
    ]
    assert replay("--dry-run") == expected
    assert len(fleet_here.read(kafka.topics.redriven)) == 0
    assert replay()[-1] == "3 of 3 put back; delivery takes them up from its smallest tier"
    assert replay() == ["0 results match and were not delivered", *expected[3:4], expected[4].replace("4", "7")]

    def called_since() -> list[str]:
        return sorted(one.event["data"]["id"] for one in callbacks.received[called_before:])

    fleet_here.deliver("d1")
    eventually(lambda: len(called_since()) >= 4, 60, lambda: f"{called_since()} were called")
    redriven = postback_here("dead-letters", "redrive", "--json", env=env)
    assert json.loads(redriven.stdout)["redriven"] == 0
    assert len(fleet_here.dead_letters()) == 3
    eventually(lambda: replay("--dry-run")[1] == "7 match too and were delivered", 30, lambda: str(replay("--dry-run")))
    assert called_since() == [*missed, "untouched"]
    assert away.received == []


# -- the limits of Kafka's records ---------------------------------------------------------------------------------


def test_each_result_is_judged_by_the_topics_that_hold_its_consequences(fleet: KafkaSettings) -> None:
    names = fleet.topics
    tier = names.tier(0.3)
    for event in ("delivered", "failed-then-delivered", "given-up", "hopped", "lost", "ahead-but-delivered", "ahead"):
        put(fleet, names.results, event)
    for event in ("failed-then-delivered", "given-up", "hopped"):
        attempt(fleet, event, "timeout")
    for event in ("delivered", "failed-then-delivered", "ahead-but-delivered", "somebody-elses"):
        attempt(fleet, event, None)
    put(fleet, names.attempts, "lost", value=b"{not json")
    at = {event: put(fleet, tier, event) for event in ("failed-then-delivered", "given-up", "hopped")}
    # This event was handled out of order: its record lies above the base, and its dead letter proves that it no longer
    # waits.
    letter(fleet, "given-up", tier, at["given-up"])
    letter(fleet, "lost", names.results, 4, value=result("lost", "another result of the same event"))
    commit(fleet, {names.results: 5, tier: 1})

    assert standings(fleet) == (["given-up", "lost"], {CallbackStanding.DELIVERED: 3, CallbackStanding.WAITING: 2}, 1)
    at_once = replace(UNDELIVERED, waiting=True)
    assert standings(fleet, at_once) == (["given-up", "hopped", "lost", "ahead"], {CallbackStanding.DELIVERED: 3}, 1)


def test_naming_a_waiting_result_is_a_failure_and_naming_a_delivered_one_is_not(fleet: KafkaSettings) -> None:
    for event in ("delivered", "ahead"):
        put(fleet, fleet.topics.results, event)
    attempt(fleet, "delivered", None)
    commit(fleet, {fleet.topics.results: 1})
    for event, status, said in (("delivered", 0, "1 match too and were"), ("ahead", 1, "not called back: ahead (wai")):
        asked = ["replay", "--tenant", "default", "--undelivered", "--id", event]
        done = postback_here(*asked, env=environment_of(fleet))
        assert done.returncode == status
        assert done.stderr.splitlines()[-1].startswith(f"postback: {said}")


def test_if_delivery_has_never_run_every_result_counts_as_waiting(fleet: KafkaSettings) -> None:
    put(fleet, fleet.topics.results, "first")
    assert standings(fleet) == ([], {CallbackStanding.WAITING: 1}, 0)


def test_results_older_than_the_kept_attempts_count_as_unknown(fleet: KafkaSettings) -> None:
    attempts = fleet.topics.attempts
    put(fleet, fleet.topics.results, "old")
    attempt(fleet, "old", None)
    time.sleep(0.01)
    attempt(fleet, "else", None)
    put(fleet, fleet.topics.results, "new")
    commit(fleet, {fleet.topics.results: 2})
    admin = AdminClient(fleet.client_config())
    assert standings(fleet) == (["new"], {CallbackStanding.DELIVERED: 1}, 0)
    for done in admin.delete_records([TopicPartition(attempts, 0, 1)]).values():
        done.result(20)
    assert standings(fleet) == (["new"], {CallbackStanding.UNKNOWN: 1}, 0)


def test_an_empty_partition_of_attempts_does_not_show_which_attempts_it_had(fleet: KafkaSettings) -> None:
    admin, attempts = AdminClient(fleet.client_config()), fleet.topics.attempts

    def configure(name: str, value: str) -> None:
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, attempts, incremental_configs=[entry])
        [done] = admin.incremental_alter_configs([resource]).values()
        done.result(20)

    for event in ("old", "new"):
        put(fleet, fleet.topics.results, event)
    attempt(fleet, "else", None)
    commit(fleet, {fleet.topics.results: 2})
    for done in admin.delete_records([TopicPartition(attempts, 0, 1)]).values():
        done.result(20)

    # Retention by age cannot have deleted attempts at results that are younger than the retention time.
    configure("retention.ms", str(60 * 60 * 1000))
    eventually(lambda: standings(fleet) == (["old", "new"], {}, 0), 60, lambda: str(standings(fleet)))
    configure("retention.ms", "1")
    eventually(lambda: standings(fleet) == ([], {CallbackStanding.UNKNOWN: 2}, 0), 60, lambda: str(standings(fleet)))
    # Retention by size may delete records of any age.
    configure("retention.ms", str(60 * 60 * 1000))
    configure("retention.bytes", "1000")
    eventually(lambda: standings(fleet) == ([], {CallbackStanding.UNKNOWN: 2}, 0), 60, lambda: str(standings(fleet)))


def test_records_after_the_open_transaction_of_a_dead_process_count_too(fleet: KafkaSettings) -> None:
    put(fleet, fleet.topics.results, "delivered")
    held = Producer({**fleet.client_config(), "transactional.id": f"{fleet.topic_prefix}held"})
    held.init_transactions(20)
    held.begin_transaction()
    held.produce(fleet.topics.attempts, b"{}", b"never", 0)
    assert held.flush(20) == 0
    attempt(fleet, "delivered", None)
    commit(fleet, {fleet.topics.results: 1})

    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(standings(fleet)))
    asking.start()
    asking.join(3)
    assert found == []  # records behind the open transaction cannot be seen yet, so the replay waits
    held.abort_transaction(20)
    asking.join(60)
    assert found == [([], {CallbackStanding.DELIVERED: 1}, 0)]
