"""Topics with batches that other clients or the broker compressed: the commands read all of them."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from producers import records
from producers.decompress import decompress
from producers.scan import Scanner
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from tests.postback_command import environment_of, postback_here

pytestmark = pytest.mark.broker

CODECS = ["gzip", "snappy", "lz4", "zstd"]
NUMBERS = {1, 2, 3, 4}
"""Numbers of these codecs in a batch's attributes."""
SECONDS = 30.0


@pytest.fixture(scope="module")
def topic_config() -> dict[str, str]:
    """Topics that keep each client's codec, unlike those of `postback topics create`."""
    return {"compression.type": "producer"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The codecs of the batches that were read."""
    found: set[int] = set()

    def noting(codec: int, content: memoryview) -> bytearray:
        found.add(codec)
        return decompress(codec, content)

    monkeypatch.setattr(records, "decompress", noting)
    return found


def result_of(job_id: str) -> bytes:
    """A result that compression makes smaller; clients send a batch uncompressed if compression saves nothing."""
    result = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="yes " * 1000, created_at=1)
    return result.model_dump_json().encode()


def produce(fleet: KafkaSettings, topic: str, codec: str, job_ids: list[str]) -> None:
    producer = Producer({**fleet.client_config(), "compression.type": codec})
    for job_id in job_ids:
        producer.produce(topic, result_of(job_id), partition=0)
    assert producer.flush(SECONDS) == 0


def test_a_command_reads_a_topic_to_which_clients_write_with_every_codec(fleet: KafkaSettings, seen: set[int]) -> None:
    job_ids = {codec: [f"{codec}-{number}" for number in range(20)] for codec in CODECS}
    for codec, named in job_ids.items():
        produce(fleet, fleet.topics.results, codec, named)
    done = postback_here("results", "--since", "-1h", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["job_id"] for line in done.stdout.splitlines()]
    assert sorted(found) == sorted(chain.from_iterable(job_ids.values()))
    assert seen == NUMBERS


def test_topics_that_the_broker_compresses_with_any_codec_are_read(fleet: KafkaSettings, seen: set[int]) -> None:
    """The broker compresses like Java's clients: it frames Snappy unlike librdkafka, and streams Zstandard."""
    topics = {codec: f"{fleet.topic_prefix}compressed-{codec}" for codec in CODECS}
    admin = AdminClient(fleet.client_config())
    made = admin.create_topics([NewTopic(topics[codec], 1, 1, config={"compression.type": codec}) for codec in CODECS])
    for each in made.values():
        each.result(SECONDS)
    values = [result_of(str(number)) for number in range(100)]
    try:
        for topic in topics.values():
            produce(fleet, topic, "none", list(map(str, range(100))))
        with Scanner(fleet) as scanner:
            stored = list(scanner.read([each for topic in topics.values() for each in scanner.ranges(topic)]))
        for topic in topics.values():
            assert [one.value for one in stored if one.topic == topic] == values
        assert seen == NUMBERS
    finally:
        for deleted in admin.delete_topics([*topics.values()]).values():
            deleted.result(SECONDS)
