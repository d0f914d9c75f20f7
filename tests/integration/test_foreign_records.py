"""Records that no client of ours wrote: commands pass over them, and the worker rejects each one with a reason."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import lz4.frame
import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaProducer

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
from tests.product import PARTITIONS, Product
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


URL = "$URL"
"""Placeholder of the receiver's URL, which is known only after it listens."""


@dataclass(frozen=True)
class Case:
    """A record, the reason for its rejection, and whether its author can be called back."""

    name: str
    value: bytes
    detail: str
    """Start of the reason: the field, and the text that is the same on every platform."""
    told: bool = True
    headers: tuple[tuple[str, bytes | None], ...] = ()
    compression: str = "none"


def job(**fields: Any) -> bytes:
    return json.dumps({"prompt": "hello", "callback_url": URL, **fields}).encode()


PICTURE = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}
IMAGE = json.dumps({"messages": [{"role": "user", "content": [PICTURE]}], "callback_url": URL}).encode()
LINE = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/moderations", "body": {}}).encode()
NOISE = os.urandom(1024 * 1024 - 100)
"""Incompressible bytes that just fit into a record, so that a dead letter with them exceeds the topic's limit."""
SMALL = tuple((chr(name & 127), bytes([value])) for name, value in zip(*[iter(os.urandom(180_000))] * 2, strict=True))
"""Many tiny headers. With a length for each name and value they are too large for a dead letter. zstd compresses the
lengths away on the way in; lz4, in which dead letters are written, does not."""
CASES = [
    Case("not JSON", b"{nope", "value: is not JSON", told=False),
    Case("no bytes at all", b"", "value: is empty", told=False),
    Case("not an object", b"[1, 2]", "value: is not a JSON object", told=False),
    Case("not UTF-8", b'{"prompt": "\xff\xfe"}', "value: is not JSON", told=False),
    Case("a deep nest", b"[" * 100_000, "value: is not JSON", told=False),
    Case("no prompt", json.dumps({"callback_url": URL}).encode(), "prompt: exactly one of"),
    Case("prompt and messages", job(messages=[{"role": "user", "content": "x"}]), "prompt: exactly one of"),
    Case("a number for a prompt", job(prompt=7), "prompt: "),
    Case("a text for a number", job(max_tokens="7"), "max_tokens: "),
    Case("no tokens at all", job(max_tokens=0), "max_tokens: "),
    Case("too hot", job(temperature=3), "temperature: "),
    Case("an image at a private address", IMAGE, "messages.0.content.0: the image cannot be used: it may not"),
    Case("600 KiB", job(prompt="x" * 600 * 1024), "value: is larger than 524288 bytes"),
    Case("no URL", job(callback_url="not a url"), "callback_url: is not an http or https URL", told=False),
    Case("a private address", job(callback_url="http://10.0.0.1/hook"), "callback_url: ", told=False),
    Case("an IPv6 address with two gaps", job(callback_url="https://[1::2::3]/"), "callback_url: ", told=False),
    Case("a forbidden port", job(callback_url="http://1.1.1.1:22/"), "callback_url: ", told=False),
    Case("credentials", job(callback_url="http://a:b@example.com/"), "callback_url: is not an http", told=False),
    Case(
        "an unknown model",
        job(model_id="gpt-17"),
        'model_id: no engine of this fleet has the model "gpt-17"; there is ',
    ),
    Case("an adapter", job(adapter="polite"), "adapter: this engine has no adapters"),
    Case("no room", job(context_window=16, max_tokens=16), "context_window: "),
    Case("a priority of 99", job(priority=99), "priority: "),
    Case("a conflict", job(job_id="a"), "headers.job-id: is not what the body says", headers=(("job-id", b"b"),)),
    Case("a priority conflict", job(priority=3), "headers.priority: ", headers=(("priority", b"5"),)),
    Case("a hostile tenant", job(), "headers.tenant: is not a tenant", headers=(("tenant", b"../x"),)),
    Case("an unknown schema", job(), "headers.schema: ", headers=(("schema", b"9"),)),
    Case("a batch line of another endpoint", LINE, "url: ", told=False),
    Case("1 MiB of noise", NOISE, "value: is larger", told=False),
    # A compressed batch may exceed its topic's limit once it is unpacked.
    Case("3 MB under compression", job(prompt="x" * 3_000_000), "value: is larger", told=False, compression="lz4"),
    Case("not JSON, and a header without a value", b"nope", "value: is not JSON", told=False, headers=(("x", None),)),
    Case("headers of 900 KB", job(), "headers: ", headers=(("x-noise", NOISE[:900_000]),)),
    Case("90,000 headers", NOISE[:770_000], "value: is larger", told=False, headers=SMALL, compression="zstd"),
    Case("compressed headers", job(), "headers: ", headers=(("x-zero", bytes(3_000_000)),), compression="lz4"),
]

TOLD = {"job_id", "outcome", "error", "created_at", "id", "custom_id", "metadata"} | {
    *("sources", "source_details", "citations", "notes"),
}
"""The only fields that a rejection may have: neither a text nor any part of the input is among them."""


def put(product: Product, cases: list[Case]) -> dict[tuple[int, int], Case]:
    """Write the cases as records; return them by partition and offset."""
    places: dict[tuple[int, int], Case] = {}
    for compression in ("none", "lz4", "zstd"):
        producer = Producer(
            {**product.kafka.client_config(), "compression.type": compression, "message.max.bytes": 8_000_000}
        )

        def note(case: Case) -> Callable[[KafkaError | None, Message], None]:
            def acknowledged(error: KafkaError | None, message: Message) -> None:
                assert error is None, f"{case.name}: {error}"
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                places[partition, offset] = case

            return acknowledged

        for count, case in enumerate(cases):
            if case.compression != compression:
                continue
            value = case.value.replace(URL.encode(), product.callbacks.url.encode())
            producer.produce(
                product.kafka.topics.requests(),
                value,
                partition=count % PARTITIONS,
                headers=list(case.headers),
                on_delivery=note(case),
            )
            producer.flush(20)  # each batch has one record, since the topic's limit applies to a batch
    assert len(places) == len(cases)
    return places


def test_each_invalid_record_is_refused_with_a_reason_that_names_its_field_and_the_worker_goes_on(
    product: Product,
) -> None:
    product.callbacks.up()
    places = put(product, CASES)
    valid = [f"valid-{number}" for number in range(PARTITIONS)]
    product.submit({"job_id": name, "prompt": name, "callback_url": product.callbacks.url} for name in valid)
    worker = product.worker("w1", "--engine", "echo", "--with-delivery")
    told = [case.name for case in CASES if case.told]
    product.wait_for_callbacks(len(told) + len(valid), 60)
    product.wait_until_nothing_is_left()

    letters = {}
    for letter in product.dead_letters():
        case = places.pop((int(letter["source-partition"]), int(letter["source-offset"])))
        letters[case.name] = letter
    assert places == {}
    reasons = {case.name: letters[case.name]["reason-detail"][: len(case.detail)] for case in CASES}
    assert reasons == {case.name: case.detail for case in CASES}
    assert {letter["reason"] for letter in letters.values()} == {"rejected"}
    assert {letter["source-topic"] for letter in letters.values()} == {product.kafka.topics.requests()}

    events = {one.webhook_id: one.event for one in product.callbacks.received if one.verified}
    heard = {name: events.pop(letter["webhook-id"], None) for name, letter in letters.items()}
    assert {name for name, event in heard.items() if event is not None} == set(told)
    for name, event in heard.items():
        if event is not None:
            assert event["type"] == "inference.rejected"
            assert event["data"]["error"] == {"code": "invalid_job", "message": letters[name]["reason-detail"]}
            assert set(event["data"]) <= TOLD
    types = {event["data"]["id"]: event["type"] for event in events.values()}
    assert types == dict.fromkeys(valid, "inference.succeeded")
    assert Counter(product.outcomes().values()) == {"rejected": len(CASES), "succeeded": len(valid)}
    metrics = worker.metrics()
    assert metrics["postback_jobs_total{rejected}"] == metrics["postback_dead_letters_total{rejected}"] == len(CASES)
    assert worker.terminate() == 0
    assert all(fragment not in worker.said() for fragment in ("hello", "token=secret", "handler-raised"))


class ForeignName(str):
    """A header name of bytes that need not be UTF-8, as clients in C or Go can write it."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def test_headers_that_the_client_cannot_read_are_refused_and_do_not_end_the_worker(product: Product) -> None:
    product.callbacks.up()
    value = job().replace(URL.encode(), product.callbacks.url.encode())
    producer = KafkaProducer(bootstrap_servers=product.kafka.bootstrap_servers)
    for topic in (product.kafka.topics.requests(), product.kafka.topics.results):
        producer.send(topic, value, headers=[(ForeignName("x"), b"")], partition=0).get(20)
    producer.close()
    product.submit([{"job_id": "valid", "prompt": "hello", "callback_url": product.callbacks.url}])
    worker = product.worker("w1", "--engine", "echo", "--with-delivery")
    product.wait_for_callbacks(2, 60)
    product.wait_until_nothing_is_left()

    details = sorted((letter["reason"], letter["reason-detail"]) for letter in product.dead_letters())
    assert details == [
        ("rejected", "headers: have a name that is not UTF-8"),
        ("unusable_result", "its headers have a name that is not UTF-8"),
    ]
    types = {one.event["data"]["id"] == "valid": one.event["type"] for one in product.callbacks.received}
    assert types == {True: "inference.succeeded", False: "inference.rejected"}
    assert worker.terminate() == 0
