"""The view: results and attempts become rows, each counted once, on both databases."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json
from sqlalchemy import Connection, select

from gateway.accept.jobs import NewJob
from gateway.access import Principal
from gateway.access.principal import DEFAULT_SCOPES
from gateway.store.store import Store
from gateway.store.tables import batches, events, job_attempts, jobs
from gateway.view.rebuild import rebuild
from gateway.view.records import ResultRecord
from gateway.view.segments import current_entries
from gateway.view.stored_events import StoredEvent, events_after
from gateway.view.stored_jobs import find_job
from gateway.view.view import TopicView
from gateway.view.waiting import Waiting
from gateway.view.writing import OnResults
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.accepted import accept_jobs
from tests.integration.gateway.running_parts import running_parts
from tests.product import PARTITIONS, eventually
from tests.unit.batch_rig import put_batch

CLOCK = SystemClock()
BATCH = f"batch_{'0' * 32}"
LAST = "the-last-of-all"


def view_of(store: Store, kafka: KafkaSettings, *hooks: OnResults, waiting: Waiting | None = None) -> TopicView:
    return TopicView(store, kafka, hooks, waiting or Waiting(CLOCK), CLOCK, Metrics())


def result(job_id: str, outcome: Outcome = Outcome.SUCCEEDED) -> bytes:
    return write_result(Result(job_id=job_id, outcome=outcome, text="answer", created_at=1))


def produce(kafka: KafkaSettings, topic: str, values: Sequence[bytes | None], headers: Any = None) -> None:
    """Write records, spread over all partitions."""
    producer = Producer(kafka.client_config())
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=number % PARTITIONS, headers=headers or [("tenant", b"acme")])
    producer.flush(30)


def statuses(store: Store) -> dict[str, str]:
    """The states of all jobs, and of the answered lines of BATCH."""

    def read(connection: Connection) -> dict[str, str]:
        rows = connection.execute(select(jobs.c.job_id, jobs.c.status))
        lines = {f"{BATCH}.{entry.line}": str(entry.status) for _, entry in current_entries(connection, BATCH)}
        return {row.job_id: row.status for row in rows} | lines

    return store.read_now(read)


def attempts(store: Store) -> Sequence[Any]:
    return store.read_now(lambda connection: connection.execute(select(job_attempts)).all())


class Counts:
    """A hook that keeps the results."""

    def __init__(self) -> None:
        self.seen: list[ResultRecord] = []

    def __call__(self, connection: Connection, stored: Sequence[ResultRecord]) -> None:
        self.seen += stored


@contextmanager
def views(store_url: str, kafka: KafkaSettings, count: int) -> Iterator[list[Store]]:
    """Several views, each with a store of its own, as in several processes."""
    with ExitStack() as stack:
        stores = [Store.open(store_url) for _ in range(count)]
        for store in stores:
            stack.callback(store.close)
        stack.enter_context(running_parts(*(view_of(store, kafka) for store in stores)))
        yield stores


def events_of(store: Store) -> Sequence[StoredEvent]:
    return store.read_now(lambda connection: events_after(connection, "acme", 0, (), 100, 1_000_000)).events


def test_results_become_rows_with_an_event_each(store: Store, fleet: KafkaSettings) -> None:
    principal = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)
    new = [NewJob("accepted", "/v1/responses", b"{}", custom_id="mine", metadata={"a": "b"})]
    store.write_now(lambda connection: accept_jobs(connection, principal, new, fleet.topics))
    store.write_now(partial(put_batch, batch_id=BATCH, total=8))
    counts = Counts()
    with running_parts(view_of(store, fleet, counts)):
        produce(
            fleet, fleet.topics.results, [result("accepted"), result("foreign"), result(f"{BATCH}.7", Outcome.FAILED)]
        )
        produce(fleet, fleet.topics.results, [result(f"{BATCH}.8"), result(f"batch_{'1' * 32}.0")])
        eventually(lambda: len(statuses(store)) == 5 and "queued" not in statuses(store).values(), 60, "rows miss")
    rows = {row.job_id: row for row in store.read_now(lambda connection: connection.execute(select(jobs)).all())}
    assert (rows["accepted"].url, rows["accepted"].custom_id, rows["accepted"].metadata) == (
        "/v1/responses",
        "mine",
        {"a": "b"},
    )
    assert rows["accepted"].submitted_by == "key:1"
    assert rows["accepted"].result == result("accepted")
    assert rows["foreign"].url == "kafka"
    assert {rows[job_id].url for job_id in (f"{BATCH}.8", f"batch_{'1' * 32}.0")} == {"kafka"}
    line = store.read_now(lambda connection: find_job(connection, "acme", f"{BATCH}.7"))
    assert line is not None
    assert (line.line, line.url, line.result) == (7, "/v1/batches", result(f"{BATCH}.7", Outcome.FAILED))
    assert sorted((each.job_id, each.url, each.batch_id, each.first) for each in counts.seen) == [
        ("accepted", "/v1/responses", None, True),
        (f"{BATCH}.7", "/v1/batches", BATCH, True),
        (f"{BATCH}.8", "kafka", None, True),
        (f"batch_{'1' * 32}.0", "kafka", None, True),
        ("foreign", "kafka", None, True),
    ]
    told = events_of(store)
    assert [each.number for each in told] == [1, 2, 3, 4, 5]
    assert {from_json(each.data)["data"]["id"] for each in told} == {*rows, f"{BATCH}.7"}


def test_a_second_result_replaces_the_first_and_does_not_count_as_a_first_one(
    store: Store, fleet: KafkaSettings
) -> None:
    counts = Counts()
    with running_parts(view_of(store, fleet, counts)):
        produce(fleet, fleet.topics.results, [result("again", Outcome.FAILED)])
        eventually(lambda: statuses(store).get("again") == "failed", 60, "the row is not written")
        produce(fleet, fleet.topics.results, [result("again")])
        eventually(lambda: statuses(store).get("again") == "succeeded", 60, "the row is not written again")
    assert [each.first for each in counts.seen] == [True, False]
    assert [(each.number, each.type) for each in events_of(store)] == [(2, "inference.succeeded")]


def test_attempts_become_rows(store: Store, fleet: KafkaSettings) -> None:
    said = {"tenant": "acme", "job_id": "j", "webhook_id": "msg_1", "at": 5, "status": 200, "attempt": 1}
    with running_parts(view_of(store, fleet)):
        produce(fleet, fleet.topics.attempts, [to_json(said), b"noise", to_json({**said, "at": 2**70}), None])
        eventually(lambda: len(attempts(store)) == 1, 60, "no row")
    (row,) = attempts(store)
    assert (row.tenant, row.job_id, row.webhook_id, row.at) == ("acme", "j", "msg_1", 5)
    assert row.details == {"status": 200, "attempt": 1}


def test_three_views_at_once_write_each_result_once(store_url: str, fleet: KafkaSettings) -> None:
    ids = [f"j{number}" for number in range(600)]
    with views(store_url, fleet, 3) as stores:
        for start in range(0, 600, 100):
            produce(fleet, fleet.topics.results, [result(each) for each in ids[start : start + 100]])
        eventually(lambda: len(statuses(stores[0])) == 600, 60, "results miss")
        told = stores[0].read_now(
            lambda connection: connection.execute(select(events.c.number, events.c.object_id)).all()
        )
    assert Counter(each.object_id for each in told) == Counter(ids)
    assert sorted(each.number for each in told) == list(range(1, 601))


def test_new_partitions_and_a_recreated_topic_are_read(store: Store, fleet: KafkaSettings) -> None:
    topic, admin = fleet.topics.results, AdminClient(fleet.client_config())
    with running_parts(view_of(store, fleet)):
        produce(fleet, topic, [result(f"old{number}") for number in range(8)])
        eventually(lambda: len(statuses(store)) == 8, 60, "results miss")
        admin.create_partitions([NewPartitions(topic, PARTITIONS + 1)])[topic].result(30)
        producer = Producer(fleet.client_config())
        eventually(
            lambda: len(producer.list_topics(topic).topics[topic].partitions) == PARTITIONS + 1, 30, "no partition"
        )
        producer.produce(topic, result("added"), partition=PARTITIONS, headers=[("tenant", b"acme")])
        producer.flush(30)
        eventually(lambda: "added" in statuses(store), 60, "the new partition is not read")
        admin.delete_topics([topic])[topic].result(30)
        eventually(lambda: topic not in producer.list_topics().topics, 30, "the topic is still there")
        admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
        eventually(lambda: topic in producer.list_topics().topics, 30, "the topic is not there")
        produce(fleet, topic, [result("anew")])
        eventually(lambda: "anew" in statuses(store), 60, "the new topic is not read")


def test_a_hook_that_fails_at_one_result_leaves_out_only_that_result(store: Store, fleet: KafkaSettings) -> None:
    counts = Counts()

    def fails(connection: Connection, stored: Sequence[ResultRecord]) -> None:
        if any(each.job_id == "j3" for each in stored):
            raise ValueError("a defect")
        counts(connection, stored)

    produce(fleet, fleet.topics.results, [result(f"j{number}") for number in range(6)])
    with running_parts(view_of(store, fleet, fails)):
        eventually(lambda: len(statuses(store)) == 6, 60, "results miss")
    assert {each.job_id for each in counts.seen} == {"j0", "j1", "j2", "j4", "j5"}


def test_a_rebuild_makes_the_rows_again_and_repeats_no_consequence(store: Store, fleet: KafkaSettings) -> None:
    principal = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)
    new = [NewJob("accepted", "/v1/jobs", b"{}")]
    store.write_now(lambda connection: accept_jobs(connection, principal, new, fleet.topics))
    store.write_now(partial(put_batch, batch_id=BATCH, total=3, completed=1, failed=1))
    counts, said = Counts(), {"tenant": "acme", "job_id": "accepted", "webhook_id": "msg_1", "at": 2**41}
    with running_parts(view_of(store, fleet, counts)):
        ids = ("accepted", f"{BATCH}.0", f"{BATCH}.1", "foreign")
        produce(fleet, fleet.topics.results, [result(each) for each in ids])
        produce(fleet, fleet.topics.attempts, [to_json(said)])
        answered = dict.fromkeys(ids, "succeeded")
        eventually(lambda: statuses(store) == answered and len(attempts(store)) == 1, 60, "rows miss")
        before = statuses(store)
        wrong = jobs.update().where(jobs.c.job_id == "foreign").values(status="failed", result=b"")
        store.write_now(lambda connection: connection.execute(wrong))
        store.write_now(lambda connection: connection.execute(job_attempts.update().values(webhook_id="wrong")))
        assert rebuild(store, fleet) == 5
        produce(fleet, fleet.topics.results, [result("later")])
        eventually(lambda: "later" in statuses(store), 60, "the view does not go on")
    assert statuses(store) == {**before, "later": "succeeded"}
    assert [row.webhook_id for row in attempts(store)] == ["msg_1"]
    assert sorted(each.job_id for each in counts.seen) == sorted([*before, "later"])
    assert sorted(from_json(each.data)["data"]["id"] for each in events_of(store)) == sorted([*before, "later"])
    counted = select(batches.c.completed, batches.c.failed)
    assert store.read_now(lambda connection: tuple(connection.execute(counted).one())) == (2, 0)


def test_a_rebuild_that_was_cut_off_holds_the_view_until_it_is_run_again(store: Store, fleet: KafkaSettings) -> None:
    def cut_off(connection: Connection) -> None:
        raise KeyboardInterrupt

    with running_parts(view_of(store, fleet)):
        produce(fleet, fleet.topics.results, [result("one")])
        eventually(lambda: "one" in statuses(store), 60, "no row")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("gateway.view.rebuild.recount", cut_off)
            rebuild(store, fleet)
        produce(fleet, fleet.topics.results, [result("two")])
        rebuild(store, fleet)
        eventually(lambda: statuses(store) == {"one": "succeeded", "two": "succeeded"}, 60, "the view does not go on")


def test_a_waiting_request_is_woken_by_the_view(store: Store, fleet: KafkaSettings) -> None:
    waiting = Waiting(CLOCK)

    async def look() -> str | None:
        return statuses(store).get("awaited")

    with running_parts(view_of(store, fleet, waiting=waiting)):
        threading.Timer(0.5, produce, (fleet, fleet.topics.results, [result("awaited")])).start()
        assert asyncio.run(waiting.until(("acme", "awaited"), look, 60)) == "succeeded"


HEADERS = st.lists(
    st.tuples(st.text(min_size=1, max_size=20) | st.sampled_from(["tenant", "webhook-id"]), st.binary(max_size=40)),
    max_size=3,
)
TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=300)
RESULTS = st.fixed_dictionaries(
    {"job_id": TEXTS, "outcome": st.sampled_from([str(each) for each in Outcome]), "created_at": st.integers()},
    optional={
        "custom_id": TEXTS,
        "model_id": TEXTS,
        "metadata": st.dictionaries(TEXTS, TEXTS, max_size=3),
        "text": TEXTS,
    },
).map(to_json)
ATTEMPTS = st.fixed_dictionaries(
    {"tenant": TEXTS | st.just("acme"), "job_id": TEXTS, "webhook_id": TEXTS, "at": st.integers()},
    optional={"more": st.recursive(TEXTS | st.integers() | st.floats(), lambda inner: st.lists(inner, max_size=3))},
).map(lambda said: to_json(said, inf_nan_mode="constants"))


def test_records_of_any_content_never_end_the_view(store: Store, fleet: KafkaSettings) -> None:
    producer, topics = Producer(fleet.client_config()), fleet.topics

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from([topics.results, topics.attempts]), st.binary() | RESULTS | ATTEMPTS | st.none(), HEADERS)
    def put(topic: str, value: bytes | None, headers: list[tuple[str, str | bytes | None]]) -> None:
        producer.produce(topic, value, partition=0, headers=headers or None)

    with running_parts(view_of(store, fleet)):
        put()
        producer.produce(topics.results, result(LAST), partition=0, headers=[("tenant", b"acme")])
        producer.flush(30)
        eventually(lambda: LAST in statuses(store), 60, "the view has ended")


@pytest.mark.parametrize("topic_config", [{"max.message.bytes": "8000000"}], ids=["other tools' limit"])
def test_a_record_larger_than_a_fetch_is_read_and_the_view_goes_on(store: Store, fleet: KafkaSettings) -> None:
    """Kafka sends a fetch's first batch whole, even a large one (KIP-74), up to `receive.message.max.bytes`."""
    # Compression cannot make this text smaller than a fetch's 1 MiB.
    noise = random.Random(1).randbytes(2_000_000).hex()
    large = Result(job_id="large", outcome=Outcome.SUCCEEDED, text=noise, created_at=1)
    errors: list[KafkaError | None] = []
    with running_parts(view_of(store, fleet)):
        producer = Producer({**fleet.client_config(), "message.max.bytes": 8_000_000})
        for value in (write_result(large), result(LAST)):
            producer.produce(
                fleet.topics.results,
                value,
                partition=0,
                headers=[("tenant", b"acme")],
                on_delivery=lambda error, _: errors.append(error),
            )
            producer.flush(30)
        assert errors == [None, None]
        eventually(lambda: LAST in statuses(store), 60, "the view waits at the large record")
