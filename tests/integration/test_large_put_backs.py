"""Put-backs in portions, with partitions that end at different times and are read more than once."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from confluent_kafka import Producer

from devkit.committed import committed_records
from producers.scan import Scanner
from schemas.settings import KafkaSettings
from tests.postback_command import environment_of, postback_here

pytestmark = pytest.mark.broker

HOOK = "https://hooks.example/in"
SIZES = {0: 3, 1: 1200}
"""Records by partition: the first poll reads all of partition 0, and partition 1 takes three polls."""
ALL = sum(SIZES.values())


def fill(fleet: KafkaSettings, topic: str, **more: str) -> None:
    """Write callbacks to the topic; SIZES has their number in each partition."""
    producer = Producer({**fleet.client_config(), "linger.ms": 20})
    for partition, size in SIZES.items():
        for number in range(size):
            job = f"job_{partition}_{number}"
            headers = {"tenant": "acme", "webhook-id": f"msg_{job}", "job-id": job, "callback-url": HOOK}
            headers |= {name.replace("_", "-"): said for name, said in more.items()}
            producer.produce(topic, b"{}", job, partition, headers=list(headers.items()))
    assert producer.flush(30) == 0


def fill_letters(fleet: KafkaSettings) -> None:
    source = {"source_topic": fleet.topics.tier(0.6), "source_partition": "0", "source_offset": "0"}
    fill(fleet, fleet.topics.dead_letters, reason="callback_exhausted", **source)


def called(fleet: KafkaSettings) -> Counter[bytes]:
    """Return how often each job is in the smallest tier."""
    tier = fleet.topics.tier(0.3)
    with Scanner(fleet) as scanner:
        scanner.wait_until_settled([tier])
    return Counter(record.key() or b"" for record in committed_records(fleet.client_config(), tier))


def test_the_same_ranges_are_read_whole_as_often_as_they_are_asked_for(fleet: KafkaSettings) -> None:
    fill(fleet, fleet.topics.results)
    with Scanner(fleet) as scanner:
        ranges = scanner.ranges(fleet.topics.results)
        first, second = ([record.place for record in scanner.read(ranges)] for _ in range(2))
    assert Counter(place.partition for place in first) == SIZES
    assert sorted(first) == sorted(second)


def test_a_replay_puts_all_back_that_it_has_counted(fleet: KafkaSettings) -> None:
    fill(fleet, fleet.topics.results)
    done = postback_here("replay", "--tenant", "acme", "--rate", "100000", "--yes", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    assert f"{ALL} of {ALL} put back" in done.stderr
    assert set(called(fleet).values()) == {1}
    assert called(fleet).total() == ALL


def test_a_redrive_puts_all_back_that_it_has_counted(fleet: KafkaSettings) -> None:
    fill_letters(fleet)
    done = postback_here("dead-letters", "redrive", "--rate", "100000", "--yes", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    assert f"{ALL} of {ALL} put back" in done.stderr
    assert set(called(fleet).values()) == {1}
    assert called(fleet).total() == ALL


def test_a_few_are_tried_first_and_a_next_run_puts_back_the_rest(fleet: KafkaSettings) -> None:
    fill_letters(fleet)
    env = environment_of(fleet)
    looked = postback_here("dead-letters", "redrive", "--limit", "10", "--dry-run", "--json", env=env)
    tried = postback_here("dead-letters", "redrive", "--limit", "10", "--yes", "--json", env=env)
    for done, count in ((looked, 0), (tried, 10)):
        assert done.returncode == 0, done.stderr
        assert f"--limit: 10 of them are put back, and {ALL - 10} are left as they are" in done.stderr
        told = json.loads(done.stdout)
        assert (told["redriven"], sum(each["count"] for each in told["matching"])) == (count, ALL)
    assert called(fleet).total() == 10
    rest = postback_here("dead-letters", "redrive", "--limit", str(ALL), "--rate", "100000", "--yes", env=env)
    assert f"{ALL - 10} of {ALL - 10} put back" in rest.stderr
    assert set(called(fleet).values()) == {1}
    assert called(fleet).total() == ALL


def test_a_limit_bounds_the_results_that_are_called_back(fleet: KafkaSettings) -> None:
    fill(fleet, fleet.topics.results)
    asked = ("replay", "--tenant", "acme", "--id", "job_0_1", "--id", "job_1_7", "--limit", "1", "--yes")
    done = postback_here(*asked, env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    assert "--limit: 1 of them are put back, and 1 are left as they are" in done.stderr
    assert "1 of 1 put back" in done.stderr
    assert called(fleet).total() == 1
