"""The real worker rejects each invalid record with a reason, and goes on."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, Producer
from kafka import KafkaProducer

from tests.product import PARTITIONS, Product

pytestmark = pytest.mark.broker

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


@pytest.fixture(scope="module")
def topic_config() -> dict[str, str]:
    """The topics are like those of other tools: the broker stores batches unchanged."""
    return {"compression.type": "producer"}


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
