"""Commands that read records skip malformed ones that a broker accepted, and read batches that clients compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import lz4.frame
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from cli.operations.exporter.reading import connected
from producers import records
from producers.decompress import decompress
from producers.receipts import Receipt, ReceiptEntry, look_up
from producers.scan import Scanner
from producers.workers import Announced, announced_models
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from schemas.worker import announcement, worker_key, write_announcement
from telemetry.clock import SystemClock
from tests.postback_command import environment_of, postback_here
from tests.record_batches import Header, batch, field, number, produce, record
from workers.stage.progress import done_offsets

pytestmark = pytest.mark.broker

NOW_MS = int(SystemClock().time() * 1000)
HOOK = "https://hooks.example/in"
OURS: list[Header] = [
    *((b"tenant", None), (b"\xff\xfe", b"x"), (b"tenant\xff", b"globex")),
    *((b"job-id", b"named"), (b"webhook-id", b"msg_named"), (b"callback-url", HOOK.encode())),
]
"""Headers, of which one has no value, and some have names that are not UTF-8."""


def result_of(job_id: str) -> bytes:
    return Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="yes", created_at=1).model_dump_json().encode()


def named(value: bytes | None, key: bytes = b"named", more: list[Header] | None = None) -> bytes:
    """A batch of two records.

    kafka-python raises an error for a name in the headers, and for the second record's attributes.
    """
    headers = OURS + (more or [])
    two = [record(value, headers, key=key), record(value, headers, key=key, offset_delta=1, attributes=0x80)]
    return batch(two, at_ms=NOW_MS)


def results() -> Iterator[bytes]:
    """Batches of one result each; the job is named after the batch's oddity."""
    yield batch([record(result_of("named"), OURS, key=b"named")], at_ms=NOW_MS)
    yield batch([record(result_of("attributes"), attributes=0x80)], at_ms=NOW_MS)
    one = b"\x82\x80\x80\x80\x10"  # encodes the length 1 with extra bits, which readers ignore
    body = b"\0\0\0" + one + b"k" + field(result_of("length")) + number(0)
    yield batch([number(len(body)) + body], at_ms=NOW_MS)
    followed = gzip.compress(record(result_of("gzip"), OURS)) + b"garbage"
    yield batch([b""], codec=1, content=followed, at_ms=NOW_MS)
    yield batch([record(result_of("offset"), offset_delta=9)], at_ms=NOW_MS)
    yield batch([record(result_of("good"))], at_ms=NOW_MS)
    # The broker ignores the checksum at the end of lz4's frame (`Lz4BlockInputStream`), but no client reads this batch.
    damaged = lz4.frame.compress(record(b"unreadable"), block_linked=False, content_checksum=True)
    yield batch([b""], codec=3, content=damaged[:-4] + b"1234", at_ms=NOW_MS)


PECULIAR = ["named", "attributes", "length", "gzip", "offset", "good"]


@dataclass(frozen=True)
class Fleet:
    """A fleet with such records in all of its topics."""

    kafka: KafkaSettings
    env: dict[str, str]

    def run(self, *arguments: str) -> str:
        done = postback_here(*arguments, env=self.env)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def topic_config() -> dict[str, str]:
    """The topics are like those of other tools: the broker stores batches unchanged."""
    return {"compression.type": "producer"}


@pytest.fixture(scope="module")
def foreign(module_fleet: KafkaSettings) -> Fleet:
    topics = module_fleet.topics
    endpoint = EndpointRecord(tenant="default", url=HOOK, state=EndpointState.FAILING, at=10**30)
    control = JobControl(tenant="default", job_id="other", state=ControlState.CANCELLED, at=1)
    worker = announcement("w", None, ["small"], 1)
    why: list[Header] = [(b"reason", b"callback_exhausted"), (b"source-topic", topics.results.encode())]
    attempt = {"tenant": "default", "job_id": "named", "webhook_id": "msg_named", "at": 10**30, "error": "timeout"}
    written = [
        *((topics.results, each) for each in results()),
        (topics.requests(), named(b'{"prompt": "p"}')),
        (topics.dead_letters, named(result_of("named"), more=[*why, (b"source-partition", b"0")])),
        (topics.redriven, named(b"{}", b"9:9")),
        (topics.attempts, named(json.dumps(attempt).encode())),
        (next(iter(topics.tiers.values())), named(result_of("tier"), more=[(b"not-before", "²".encode())])),
        (topics.endpoints, named(write_endpoint(endpoint), key_bytes(endpoint.key))),
        (topics.workers, named(write_announcement(worker), worker_key("w"))),
        (topics.control, named(write_control(control), job_key_bytes(control.key))),
    ]
    produce(module_fleet.bootstrap_servers, written)
    return Fleet(module_fleet, environment_of(module_fleet))


def test_the_command_results_collects_the_result_of_each_job(foreign: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    found = [json.loads(line)["job_id"] for line in foreign.run("results", "--since", "-1h").splitlines()]
    assert sorted(found) == sorted(PECULIAR)
    assert [line.getMessage().count("batch-unreadable") for line in caplog.records if line.name == "postback"] == [1]
    asked = [part for job_id in PECULIAR for part in ("--id", job_id)]
    waited = foreign.run("results", "--wait", "--timeout", "20", *asked)
    assert sorted(json.loads(line)["job_id"] for line in waited.splitlines()) == sorted(PECULIAR)


def test_dead_letters_are_listed_shown_and_could_be_put_back(foreign: Fleet) -> None:
    listed = json.loads(foreign.run("dead-letters", "list", "--json"))
    assert [(each["id"], each["tenant"], each["webhook_id"]) for each in listed] == [
        ("0:0", "default", "msg_named"),
        ("0:1", "default", "msg_named"),
    ]
    (shown,) = json.loads(foreign.run("dead-letters", "show", "0:0"))
    assert ["\\xff\\xfe", "x"] in shown["headers"]
    assert json.loads(foreign.run("dead-letters", "redrive", "--dry-run", "--json"))["matching"]


def test_replay_finds_undelivered_results(foreign: Fleet) -> None:
    for which in ("--dry-run", "--undelivered"):
        foreign.run("replay", "--dry-run", "--tenant", "default", "--endpoint", HOOK, which)


def test_the_steps_of_a_job_are_shown(foreign: Fleet) -> None:
    steps = json.loads(foreign.run("endpoints", "deliveries", "named", "--json"))
    assert {step["what"] for step in steps} == {"settled", "attempt", "dead_letter", "redriven", "waiting"}
    assert foreign.run("endpoints", "deliveries", "named")


def test_endpoints_are_listed_waiting_records_counted_and_jobs_cancelled(foreign: Fleet) -> None:
    assert [each["url"] for each in json.loads(foreign.run("endpoints", "list", "--json"))] == [HOOK]
    assert foreign.run("topics", "backlog")
    foreign.run("cancel", "named")


def test_the_exporter_skips_all_foreign_records(foreign: Fleet) -> None:
    with connected(foreign.kafka, done_offsets) as reader:
        for _ in range(2):
            waiting = reader.read(NOW_MS)
    topics = foreign.kafka.topics
    assert (waiting[topics.requests()], reader.facts.dead_letters) == (2, 2)
    assert reader.facts.models() == {"small": 1}
    partitions = reader.lanes.by_pool()[None][topics.requests()]
    assert [(each.known, each.unread) for each in partitions] == [(2, 0), (0, 0), (0, 0), (0, 0)]


def test_announced_models_are_found(foreign: Fleet) -> None:
    assert announced_models(foreign.kafka) == Announced(("small",), more=False)


def test_a_job_whose_acknowledgement_was_lost_is_found(foreign: Fleet) -> None:
    entry = ReceiptEntry(line=1, job_id="named", tenant="default", digest="", at=NOW_MS)
    receipt = Receipt([entry], [Job(prompt="p")], doubtful=[0])
    assert look_up(foreign.kafka, receipt) == 1
    assert receipt.left == []


# -- compressed batches --------------------------------------------------------------------------------------------

CODECS = ["gzip", "snappy", "lz4", "zstd"]
NUMBERS = {1, 2, 3, 4}
"""Numbers of these codecs in a batch's attributes."""
SECONDS = 30.0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The codecs of the batches that were read."""
    found: set[int] = set()

    def noting(codec: int, content: memoryview) -> bytearray:
        found.add(codec)
        return decompress(codec, content)

    monkeypatch.setattr(records, "decompress", noting)
    return found


def long_result(job_id: str) -> bytes:
    """A result that compression makes smaller; clients send a batch uncompressed if compression saves nothing."""
    result = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="yes " * 1000, created_at=1)
    return result.model_dump_json().encode()


def compress(fleet: KafkaSettings, topic: str, codec: str, job_ids: list[str]) -> None:
    producer = Producer({**fleet.client_config(), "compression.type": codec})
    for job_id in job_ids:
        producer.produce(topic, long_result(job_id), partition=0)
    assert producer.flush(SECONDS) == 0


def test_a_command_reads_a_topic_to_which_clients_write_with_every_codec(fleet: KafkaSettings, seen: set[int]) -> None:
    job_ids = {codec: [f"{codec}-{number}" for number in range(20)] for codec in CODECS}
    for codec, named in job_ids.items():
        compress(fleet, fleet.topics.results, codec, named)
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
    values = [long_result(str(number)) for number in range(100)]
    try:
        for topic in topics.values():
            compress(fleet, topic, "none", list(map(str, range(100))))
        with Scanner(fleet) as scanner:
            stored = list(scanner.read([each for topic in topics.values() for each in scanner.ranges(topic)]))
        for topic in topics.values():
            assert [one.value for one in stored if one.topic == topic] == values
        assert seen == NUMBERS
    finally:
        for deleted in admin.delete_topics([*topics.values()]).values():
            deleted.result(SECONDS)
