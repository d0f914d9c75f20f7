"""The real handlers get records of any content: no handler raises an error, and a broker would accept all outputs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from schemas import topics as names
from schemas.outcome import Outcome
from schemas.result import Result
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.handlers import CLOCK, TOPICS, inference_handler
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.endpoint_states import EndpointStates
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy, Guard
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.cancellations import Cancellations
from workers.stage.record import Failure, Output, Record
from workers.stage.runner import MAX_OUTPUT_BYTES, is_too_large

NOBODY = EgressPolicy(ports=frozenset())
"""A policy that refuses every URL, so nothing is called."""
FAILURE = Failure("worker_killed", "it ended its worker", 3)

SMALL = (
    st.integers(0, 10**16).map(str) | st.text(max_size=12) | st.sampled_from(["-1", "٣", "1e3", "https://a.example/"])
)
NAMED = st.tuples(
    st.sampled_from([value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]),
    st.none() | st.binary(max_size=12) | SMALL.map(str.encode),
)
HEADERS = st.none() | st.lists(NAMED | st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=9)), max_size=8)
WHOLE = st.lists(NAMED, max_size=4).map(
    lambda more: [
        (names.CALLBACK_URL, b"https://a.example/hook"),
        (names.JOB_ID, b"a"),
        (names.WEBHOOK_ID, b"msg_1"),
        *more,
    ]
)
"""The headers that every callback has, beside further headers of any content."""
TIMES = st.sampled_from([-1, 0, 1, 2**62]) | st.integers(1_700_000_000_000, 2_000_000_000_000)
RESULTS = st.builds(
    lambda job_id, text: Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text=text, created_at=1).model_dump_json(),
    st.text(max_size=9),
    st.text(max_size=9),
).map(str.encode)
FIELDS = ["messages", "job_id", "custom_id", "callback_url", "model_id", "max_tokens", "metadata"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
THINGS = st.recursive(
    LEAVES, lambda some: st.lists(some, max_size=2) | st.dictionaries(st.text(max_size=5), some), max_leaves=4
)
JOBS = st.fixed_dictionaries({"prompt": st.text(max_size=9) | THINGS}, optional=dict.fromkeys(FIELDS, THINGS)).map(
    lambda job: json.dumps(job).encode()
)


def records(*topics: str) -> st.SearchStrategy[Record]:
    values = st.binary(max_size=40) | RESULTS | JOBS
    offsets = st.sampled_from([0, 7, 2**62])
    keys = st.none() | st.binary(max_size=9)
    unreadable = st.none() | st.none() | st.just("have a name that is not UTF-8")
    return st.builds(
        Record, st.sampled_from(topics), st.just(3), offsets, values, keys, HEADERS, TIMES, unreadable
    ).map(_as_the_client_gives_it)


def _as_the_client_gives_it(record: Record) -> Record:
    if record.unreadable is not None:
        record.headers = None
    return record


def ensure_producible(outputs: Sequence[Output]) -> None:
    assert not any(map(is_too_large, outputs)), f"larger than {MAX_OUTPUT_BYTES} bytes"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=drawn(100))


def test_inference_answers_defers_and_gives_up_every_record(loop: asyncio.AbstractEventLoop) -> None:
    metrics = Metrics()
    engine, enricher = (
        EchoEngine(EchoSettings(), metrics),
        Enricher(EnrichmentSettings(), Guard(NOBODY), CLOCK, metrics),
    )
    handler = inference_handler(engine, enricher, metrics, lanes={"another": "lane"}, callbacks=NOBODY)

    @ANY
    @example(Record(TOPICS.requests(), 3, 7, b'{"prompt":"x","callback_url":"https://[2001:db8::1::2]/hook"}'))
    @given(records(TOPICS.requests(), TOPICS.requests(bulk=True)))
    def each(record: Record) -> None:
        assert isinstance(handler.sharing.party(record.headers), bytes)
        assert handler.sharing.cost(record) >= 1
        assert handler.sharing.urgency(record) >= 0
        assert handler.pace.due_ms(record) is None
        for outputs in (loop.run_until_complete(handler.handle(record)), handler.sharing.defer(record)):
            ensure_producible(outputs)
            assert len(outputs) in (1, 2)
        ensure_producible(handler.give_up(record, FAILURE))

    each()


def test_delivery_handles_and_gives_up_every_record_and_knows_when_it_is_due(
    loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    keyring = Keyring.create(tmp_path / "keyring.json", CLOCK)
    delivery = DeliverySettings()
    handler = DeliveryHandler(TOPICS, keyring, Poster(delivery, NOBODY, CLOCK), CLOCK, Metrics(), delivery)

    @ANY
    @given(records(TOPICS.results, *TOPICS.tiers.values()))
    def each(record: Record) -> None:
        due_ms = handler.due_ms(record)
        assert (due_ms is None) == (record.topic == TOPICS.results)
        ensure_producible(loop.run_until_complete(handler.handle(record)))
        ensure_producible(handler.give_up(record, FAILURE))

    each()
    loop.run_until_complete(handler.close())


TEXTS = st.binary(max_size=30) | THINGS.map(lambda thing: json.dumps(thing).encode())
KEYS = st.none() | TEXTS | st.tuples(st.text(max_size=5), st.text(max_size=5)).map(lambda key: json.dumps(key).encode())
FACTS = TEXTS | st.fixed_dictionaries(
    {},
    optional={
        "tenant": st.just("acme") | st.text(max_size=3),
        "job_id": st.just("a") | st.text(max_size=3),
        "url": st.text(max_size=9),
        "state": st.sampled_from(["cancelled", "disabled", "failing", "enabled", "x"]),
        "at": st.integers() | st.just(2**70) | st.floats(),
        "reason": st.sampled_from(["gone", "failing", "operator", "x"]),
    },
).map(lambda fact: json.dumps(fact).encode())


@ANY
@given(st.lists(st.tuples(KEYS, st.none() | FACTS), max_size=5))
def test_records_of_compacted_topics_are_taken_in_or_skipped(said: list[tuple[bytes | None, bytes | None]]) -> None:
    cancellations, states = Cancellations(CLOCK), EndpointStates(DeliverySettings(), Metrics())
    for key, value in said:
        cancellations.apply(key, value)
        states.apply(key, value)
