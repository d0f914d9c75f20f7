"""Processes are killed, stopped and started under load, and receivers hang, wait or are down: no job is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer

from cli.devkit.broker import Broker
from cli.devkit.receiver import Behaviour, Received
from cli.operations.topics import create_topics
from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere, running_here
from tests.messages import put_results
from tests.product import PARTITIONS, Product, Role, eventually, running

pytestmark = pytest.mark.broker

JOBS = 900
NARROW = {"POSTBACK_WORKER__WINDOW_RECORDS": "8"}
"""Eight jobs of 0.2 s at once make 40 a second for each worker, so the load outlasts the test's faults."""


def jobs_named(names: list[str], product: Product) -> list[dict[str, object]]:
    url = product.callbacks.url
    return [{"job_id": name, "prompt": f"[[sleep 0.2]] {name}", "callback_url": url} for name in names]


def test_processes_that_die_leave_and_come_back_answer_every_job_once_and_call_back(product: Product) -> None:
    product.callbacks.up()
    workers = {name: product.worker(name, **NARROW) for name in ("w1", "w2")}
    deliveries = {name: product.deliver(name) for name in ("d1", "d2")}
    names = [f"job-{number}" for number in range(JOBS)]
    product.submit(jobs_named(names, product))

    product.wait_for_callbacks(50, 60)
    workers["w1"].kill()
    deliveries["d1"].kill()
    workers["w1"], deliveries["d1"] = product.worker("w1", **NARROW), product.deliver("d1")
    product.wait_for_callbacks(JOBS // 3, 60)
    assert workers["w2"].terminate() == 0
    workers["w3"] = product.worker("w3", **NARROW)
    assert deliveries["d2"].terminate() == 0
    deliveries["d2"] = product.deliver("d2")
    product.wait_for_callbacks(JOBS * 2 // 3, 60)
    workers["w1"].kill()
    deliveries["d1"].kill()

    product.wait_for_callbacks(JOBS, 90)
    product.wait_until_nothing_is_left()
    product.assert_each_is_answered_once_and_called_back(names)
    assert set(product.outcomes().values()) == {"succeeded"}
    assert product.dead_letters() == []
    for role in (workers["w3"], deliveries["d2"]):
        assert role.terminate() == 0


def test_a_delivery_process_that_dies_between_the_post_and_its_settling_repeats_the_same_event(
    product: Product,
) -> None:
    product.callbacks.up()
    product.worker("w1")
    doomed = product.deliver("d1")

    def kill_the_first_sender(received: Received) -> None:
        if len(product.callbacks.received) == 1:
            os.kill(doomed.process.pid, signal.SIGKILL)

    product.callbacks.before_answer = kill_the_first_sender
    names = [f"job-{number}" for number in range(20)]
    product.submit({"job_id": name, "prompt": name, "callback_url": product.callbacks.url} for name in names)
    assert doomed.process.wait(90) == -signal.SIGKILL

    heir = product.deliver("d1")
    product.wait_for_callbacks(len(names), 60)
    product.wait_until_nothing_is_left()
    product.assert_each_is_answered_once_and_called_back(names)
    # The log line `partition-left-open` says that the heir tries the first records of partitions in small groups.
    assert '"partition-left-open"' in heir.said()
    assert "partition-left-open" not in doomed.said()
    assert max(len(repeats) for repeats in product.callbacks.events.values()) >= 2


def test_every_worker_has_its_share_of_every_lane(product: Product) -> None:
    """If each worker served one lane only, an engine would be idle whenever its lane is empty."""

    def lanes_of(worker: Role) -> Counter[str]:
        held = [name for name in worker.metrics() if name.startswith("postback_backlog_records")]
        return Counter(name.partition(",")[2].rstrip("}") for name in held)

    topics = product.kafka.topics
    share = dict.fromkeys(topics.requests_of(None), PARTITIONS // 2)
    workers = [product.worker(name) for name in ("w1", "w2")]
    eventually(
        lambda: all(lanes_of(worker) == share for worker in workers), 60, lambda: str([lanes_of(w) for w in workers])
    )


# -- a broker of the fleet's own -----------------------------------------------------------------------------------


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    with Broker.start() as broker:
        yield broker


@pytest.fixture
def unprefixed(own_broker: Broker, tmp_path: Path, clean_processes: None) -> Iterator[Product]:
    """A fleet with the default topic names."""
    kafka = KafkaSettings(bootstrap_servers=own_broker.bootstrap_servers, partitions=PARTITIONS)
    create_topics(kafka)
    with running(kafka, tmp_path) as started:
        yield started


@pytest.fixture
def producer(own_broker: Broker) -> Iterator[KafkaProducer]:
    """A producer that knows nothing of Postback, closed after a failure too: its sockets would fail later tests."""
    broker = own_broker.bootstrap_servers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3 deprecates functions as serializers
        plain = KafkaProducer(bootstrap_servers=broker, value_serializer=lambda job: json.dumps(job).encode())
    yield plain
    plain.close(timeout=5)


def test_a_plain_producer_gets_a_signed_callback_and_a_frozen_broker_is_reported_and_survived(
    unprefixed: Product, own_broker: Broker, producer: KafkaProducer
) -> None:
    unprefixed.callbacks.up()
    worker, delivery = unprefixed.worker("w1"), unprefixed.deliver("d1")
    url = unprefixed.callbacks.url

    producer.send("model_requests", {"prompt": "What is the capital of France?", "callback_url": url})
    producer.flush()

    unprefixed.wait_for_callbacks(1, 60)
    [received] = unprefixed.callbacks.received
    assert received.verified
    assert received.event["type"] == "inference.succeeded"
    assert received.event["data"]["text"] == "What is the capital of France?"
    assert received.event["id"] == received.webhook_id
    eventually(lambda: worker.ready() == delivery.ready() == (True, []), 60, "a process is not ready")

    for number in range(40):
        producer.send(
            # Each job takes 10 s, so that the test sees jobs in flight. The broker is frozen for about as long.
            "model_requests",
            {"prompt": f"[[sleep 10]] {number}", "callback_url": url, "job_id": f"job-{number}"},
        )
    producer.flush()
    eventually(lambda: worker.metrics()["postback_in_flight"] > 0, 60, "no job is taken")
    own_broker.pause()
    # Delivery is idle and makes no call that could fail. An earlier version noticed the frozen broker only after 60 s.
    eventually(
        lambda: not worker.ready()[0] and not delivery.ready()[0],
        20,
        lambda: f"a process says that it is ready while its broker is frozen: {worker.ready()}, {delivery.ready()}",
    )
    assert worker.alive()
    assert delivery.alive()
    own_broker.resume()
    eventually(lambda: worker.ready()[0] and delivery.ready()[0], 40, "a process is not ready again")
    unprefixed.wait_for_callbacks(41, 60)
    unprefixed.wait_until_nothing_is_left()
    assert set(unprefixed.outcomes().values()) == {"succeeded"}
    assert len(unprefixed.outcomes()) == 41
    assert worker.terminate() == delivery.terminate() == 0


def test_log_lines_of_kafkas_client_are_json_like_all_others(unprefixed: Product, own_broker: Broker) -> None:
    worker = unprefixed.worker("w1", "--engine", "echo", "--with-delivery")
    eventually(lambda: worker.ready()[0], 60, "the worker does not become ready")
    own_broker.kill()
    eventually(lambda: '"log.logger":"librdkafka' in worker.said().replace(" ", ""), 60, worker.said)
    assert {line["service.name"] for line in worker.lines()} == {"worker"}


TIERS = (1.0, 4.0, 14.0)
"""The receiver's ten seconds lie between two tiers, so a record changes its tier while it waits."""
ASKED_SECONDS = 10
"""Long enough for the test to kill a process before the second attempts. A later kill would repeat some attempts."""
EVENTS = 40
ASKING = Behaviour(status=204, fail_first=1, fail_status=429, retry_after_seconds=ASKED_SECONDS)


@pytest.fixture
def patient(product_with_tiers: Callable[..., Product]) -> Product:
    return product_with_tiers(*TIERS)


def test_a_retry_after_is_met_in_full_by_any_process_that_makes_the_next_attempt(patient: Product) -> None:
    patient.callbacks.up(ASKING)
    doomed, other = (patient.deliver(name) for name in ("d1", "d2"))
    eventually(lambda: doomed.ready()[0] and other.ready()[0], 60, "delivery is not ready")
    names = [f"event-{number}" for number in range(EVENTS)]
    patient.callbacks.tenants = names
    put_results(patient.kafka, dict.fromkeys(names, patient.callbacks.url), None)
    eventually(lambda: len(patient.attempts()) >= EVENTS, 60, lambda: f"{len(patient.attempts())} attempts are made")
    doomed.kill()
    patient.deliver("d3")
    eventually(
        lambda: len(patient.attempts()) >= 2 * EVENTS, 90, lambda: f"{len(patient.attempts())} attempts are made"
    )
    patient.wait_until_nothing_is_left()

    said = sorted(patient.attempts(), key=lambda one: (one["job_id"], one["attempt"]))
    assert [(one["job_id"], one["attempt"], one["status"]) for one in said] == [
        (name, *each) for name in sorted(names) for each in ((1, 429), (2, 204))
    ]
    for first, second in zip(said[::2], said[1::2], strict=True):
        answered = first["at"] + first["duration_ms"]
        # Both times are rounded, so their difference may be up to 2 ms too small.
        assert second["at"] - answered >= 1000 * ASKED_SECONDS - 2
    assert {name: [one.status for one in got] for name, got in patient.callbacks.events.items()} == {
        name: [429, 204] for name in names
    }
    assert patient.dead_letters() == []


FIRST, FOUND = PARTITIONS, 492
HUNG_ONE_IN = 41
"""One in 41 of the FOUND events hangs: twelve events, and sixteen together with the four FIRST events.

In an earlier version, suspects ran in groups of 32, and each group waited for its hung events.
"""


@pytest.fixture
def hung() -> Iterator[str]:
    """A URL whose server accepts connections and requests, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"


def test_healthy_endpoints_get_their_callbacks_before_the_first_attempt_at_the_hung_one_has_ended(
    product: Product, hung: str
) -> None:
    product.callbacks.up()
    killed = product.deliver("d1")
    put_results(product.kafka, {f"first-{number}": hung for number in range(FIRST)})
    eventually(lambda: killed.metrics()["postback_in_flight"] == FIRST, 60, "not all is tried")
    killed.kill()

    urls = {f"found-{n}": hung if n % HUNG_ONE_IN == 0 else product.callbacks.url for n in range(FOUND)}
    put_results(product.kafka, urls)
    # This is the longest deadline that the setting allows.
    restarted = product.deliver("d1")
    healthy = {name for name, url in urls.items() if url != hung}
    eventually(lambda: len(product.callbacks.events) == len(healthy), 120, "a healthy endpoint waits")
    assert set(product.callbacks.events) == healthy
    eventually(lambda: len(product.attempts()) >= len(healthy), 30, "not all that was sent is settled")
    assert [attempt["error"] for attempt in product.attempts()] == [None] * len(healthy)
    assert "partition-left-open" in restarted.said()


NOBODY = "http://127.0.0.1:9/hook"
"""The discard port, on which nothing listens."""
LATE_TIERS = (0.3, 15.0)
"""The second wait is long enough for the test to notice the first failures and start the receiver."""


@pytest.fixture
def patient_here(fleet: KafkaSettings, tmp_path: Path) -> Iterator[FleetHere]:
    kafka = fleet.model_copy(update={"tier_delays_seconds": LATE_TIERS, "partitions": PARTITIONS})
    create_topics(kafka)
    with running_here(kafka, tmp_path) as started:
        yield started


def test_a_returning_receiver_gets_missed_events_and_untaken_ones_are_dead_letters(
    patient_here: FleetHere,
) -> None:
    patient_here.callbacks.up()
    patient_here.callbacks.down()  # from here on the port is reserved, and refuses connections
    worker = patient_here.worker("w1", "--engine", "echo", "--with-delivery")
    missed, lost = [f"missed-{n}" for n in range(12)], [f"lost-{n}" for n in range(4)]
    patient_here.submit({"job_id": name, "prompt": name, "callback_url": patient_here.callbacks.url} for name in missed)
    patient_here.submit({"job_id": name, "prompt": name, "callback_url": NOBODY} for name in lost)

    def attempts() -> list[tuple[str, int, str | None]]:
        return [(one["job_id"], one["attempt"], one["error"]) for one in patient_here.attempts()]

    # Ask the process itself, because on a busy machine reading the attempts' topic may outlast a callback's second
    # wait.
    failed = "postback_callbacks_total{connect_failed}"
    eventually(lambda: worker.metrics().get(failed, 0) >= len(missed + lost), 60, "not every callback was tried")
    patient_here.callbacks.up()
    patient_here.wait_for_callbacks(len(missed), 30)
    eventually(lambda: len(patient_here.dead_letters()) >= len(lost), 30, "a lost callback is no dead letter")
    patient_here.wait_until_nothing_is_left()

    assert set(patient_here.callbacks.events) == set(missed)
    letters = patient_here.dead_letters()
    assert {letter["job-id"] for letter in letters} == set(lost)
    assert {(letter["reason"], letter["attempts"]) for letter in letters} == {("callback_exhausted", "3")}
    tried = sorted(attempts(), key=lambda one: one[1])  # a batch spreads its records over several partitions
    assert {attempt for job, attempt, _ in tried if job in lost} == {1, 2, 3}
    for name in missed:
        errors = [error for job, _, error in tried if job == name]
        assert errors[0] is not None
        assert errors.count(None) == 1
    webhook_ids = {name: {one.webhook_id for one in patient_here.callbacks.events[name]} for name in missed}
    assert all(len(ids) == 1 for ids in webhook_ids.values())
