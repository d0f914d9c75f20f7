"""A job's history: `postback endpoints deliveries` after a real delivery and a redrive, and `postback trace`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from cli.operations.topics import create_topics
from gateway.store.store import Store
from gateway.store.tables import job_attempts, jobs
from gateway.view.writing import write_results
from producers.scan import Scanner
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Citation, Result, ResultError, SourceDetails, Support, Timings
from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from tests.product import PARTITIONS, eventually
from tests.unit.batch_rig import put_batch, result_record

FORMER_TIER_SECONDS = 0.4
"""A tier that belongs to the fleet's former schedule."""
ATTEMPTS = 3
"""Attempts for an event of the test's fleet, which has two tiers."""


def put_result(fleet_here: FleetHere, topic: str, job_id: str, webhook_id: str) -> None:
    result = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
    headers = {"webhook-id": webhook_id, "job-id": job_id, "callback-url": fleet_here.callbacks.url}
    producer = Producer(fleet_here.kafka.client_config())
    producer.produce(topic, write_result(result), job_id, 0, headers=list(headers.items()))
    assert producer.flush(20) == 0


@pytest.mark.broker
def test_a_failed_and_redriven_callback_is_shown_from_its_result_to_its_delivery(fleet_here: FleetHere) -> None:
    former = fleet_here.kafka.model_copy(
        update={"tier_delays_seconds": (FORMER_TIER_SECONDS,), "partitions": PARTITIONS}
    )
    create_topics(former)
    fleet_here.callbacks.up()
    fleet_here.callbacks.down()
    env = environment_of(fleet_here.kafka)
    put_result(fleet_here, fleet_here.kafka.topics.results, "job_1", "msg_1")
    # Jitter is off, because a record that is early by more than the slack would hop to another tier, and so add a step.
    fleet_here.deliver("d1", POSTBACK_DELIVERY__JITTER="0")
    eventually(lambda: len(fleet_here.dead_letters()) == 1, 60, "the callback is not given up")
    fleet_here.callbacks.up()
    former_tier = former.topics.tier(FORMER_TIER_SECONDS)
    put_result(fleet_here, former_tier, "job_2", "msg_2")
    assert postback_here("dead-letters", "redrive", "job_1", env=env).returncode == 0
    fleet_here.wait_for_callbacks(2, 60)
    fleet_here.wait_until_nothing_is_left()
    eventually(
        lambda: not fleet_here.lag("delivery", [former_tier]), 30, "the callback of the former tier is not settled"
    )
    with Scanner(fleet_here.kafka) as scanner:
        scanner.wait_until_settled([fleet_here.kafka.topics.attempts])

    steps = json.loads(postback_here("endpoints", "deliveries", "msg_1", "--json", env=env).stdout)
    assert {(step["tenant"], step["job_id"]) for step in steps} == {("default", "job_1")}
    assert [step["at"] for step in steps] == sorted(step["at"] for step in steps)
    told = [(step["what"], step.get("attempt") or step.get("attempts"), step.get("error")) for step in steps]
    failed = "connect_failed"
    assert sorted(told[:7], key=str) == sorted(
        [
            *(("settled", None, None), ("attempt", 1, failed), ("waiting", "1", None), ("attempt", 2, failed)),
            *(("waiting", "2", None), ("attempt", 3, failed), ("dead_letter", None, None)),
        ],
        key=str,
    )
    # A redrive writes the mark and the callback in one transaction, so either may come first.
    assert {what for what, *_ in told[7:9]} == {"redriven", "waiting"}
    assert told[9:] == [("attempt", 1, None)]
    lines = postback_here("endpoints", "deliveries", "job_1", env=env).stdout.splitlines()
    assert len(lines) == len(steps)
    origin = fleet_here.callbacks.url.removesuffix("/hook?token=secret")
    assert re.fullmatch(rf"\S+Z  settled: succeeded, to be called back at {origin} \(model_results 0:0\)", lines[0])
    assert re.fullmatch(rf"\S+Z  attempt 1 of {ATTEMPTS} delivered: status 200, [\d.]+ ms, \d+ bytes", lines[-1])
    assert lines[1].partition("attempt ")[2].startswith(f"1 of {ATTEMPTS} failed: ")
    assert "secret" not in "".join(lines)
    second = postback_here("endpoints", "deliveries", "job_2", env=env).stdout
    assert second.count(f"attempt 1 of {ATTEMPTS} delivered") == 1


def put(fleet: KafkaSettings, topic: str, headers: dict[str, str], value: bytes = b"{}", at_ms: int = 0) -> None:
    producer = Producer(fleet.client_config())
    said = {"job-id": "job_1", "webhook-id": "msg_1", **headers}
    producer.produce(topic, value, "job_1", 0, headers=list(said.items()), timestamp=at_ms)
    assert producer.flush(20) == 0


def told(fleet: KafkaSettings, *arguments: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads(
        postback_here("endpoints", "deliveries", "msg_1", "--json", *arguments, env=environment_of(fleet)).stdout
    )
    return steps


@pytest.mark.broker
def test_hundreds_of_deferrals_of_an_event_are_shown_as_one_line_for_each_wait(fleet: KafkaSettings) -> None:
    fleet = stamped_by_us(fleet)
    former = fleet.model_copy(update={"tier_delays_seconds": (FORMER_TIER_SECONDS,)})
    create_topics(former)
    tier, former_tier = fleet.topics.tier(0.3), former.topics.tier(FORMER_TIER_SECONDS)
    start_ms = int(time() * 1000) - 3_600_000
    put(fleet, fleet.topics.results, {"callback-url": "https://hooks.example/in"}, at_ms=start_ms)
    for number in range(1, 300):
        put(fleet, tier, {"deferred": str(number)}, at_ms=start_ms + number)
    # The broker stamps records of the former tier with the current time, so this wait is the last before the attempt.
    reason = {"deferred-reason": "origin_left_alone"}
    put(fleet, former_tier, {"deferred": "300", "not-before": "1700000000000", **reason})
    after_ms = int(time() * 1000) + 1000
    tried = {"tenant": "default", "job_id": "job_1", "webhook_id": "msg_1", "attempt": 1, "at": after_ms}
    put(fleet, fleet.topics.attempts, {}, json.dumps(tried).encode())
    put(fleet, tier, {"attempt": "1", "deferred": "300"}, at_ms=after_ms + 1)
    put(fleet, tier, {"attempt": "1", "deferred": "302"}, at_ms=after_ms + 2)
    put(fleet, fleet.topics.redriven, {}, at_ms=after_ms + 3)
    for number in range(2):
        put(fleet, tier, {"deferred": str(number)}, at_ms=after_ms + 4 + number)

    steps = told(fleet)
    assert [(step["what"], step.get("deferred")) for step in steps] == [
        ("settled", None),
        *(("waiting", 300), ("attempt", None), ("waiting", 2), ("redriven", None), ("waiting", 1)),
    ]
    first = steps[1]
    assert (first["topic"], first["until"]) == (former_tier, "2023-11-14T22:13:20.000Z")
    assert first["at"] < first["last"]
    lines = postback_here("endpoints", "deliveries", "job_1", env=environment_of(fleet)).stdout.splitlines()
    assert len(lines) == len(steps)
    assert lines[1] == (
        f"{first['at']}  waits until 2023-11-14T22:13:20.000Z ({former_tier}), deferred 300 times until {first['last']}"
        ": the endpoint's origin failed too often, or asked for a pause"
    )


@pytest.mark.broker
def test_attempts_and_waits_are_not_looked_for_before_the_first_result_unless_something_was_given_up_before(
    fleet: KafkaSettings,
) -> None:
    now_ms, day_ms = int(time() * 1000), 24 * 3600 * 1000
    fleet = stamped_by_us(fleet)
    for days, number in ((3, 1), (1, 2)):
        tried = {"tenant": "default", "job_id": "job_1", "webhook_id": "msg_1", "attempt": number}
        at_ms = now_ms - days * day_ms
        put(fleet, fleet.topics.attempts, {}, json.dumps({**tried, "at": at_ms}).encode(), at_ms)
    put(fleet, fleet.topics.results, {}, at_ms=now_ms - 2 * day_ms)

    assert [(step["what"], step.get("attempt")) for step in told(fleet)] == [("settled", None), ("attempt", 2)]
    assert [step["what"] for step in told(fleet, "--since", "-36h")] == ["attempt"]

    put(fleet, fleet.topics.dead_letters, {"reason": "worker_killed"}, at_ms=now_ms - 4 * day_ms)
    assert [step["what"] for step in told(fleet)] == ["dead_letter", "attempt", "settled", "attempt"]


def stamped_by_us(fleet: KafkaSettings) -> KafkaSettings:
    """A fleet whose topics keep their records' own timestamps, for events of days ago."""
    ours = fleet.model_copy(update={"topic_prefix": f"{fleet.topic_prefix}ours.", "partitions": 1})
    admin = AdminClient(ours.client_config())
    specs = [(spec, {**spec.config, "message.timestamp.type": "CreateTime"}) for spec in ours.topics.specs(1)]
    made = admin.create_topics([NewTopic(spec.name, spec.partitions, 1, config=config) for spec, config in specs])
    for done in made.values():
        done.result(20)
    return ours


@pytest.mark.broker
def test_an_unknown_job_is_reported_as_unknown(fleet_here: FleetHere) -> None:
    done = postback_here(
        "endpoints", "deliveries", "nobody", "--since", "-1h", "--json", env=environment_of(fleet_here.kafka)
    )

    said = "postback: nobody was never seen: no lane and no kept result has it\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", said)


# -- trace: a job from its submission to its callbacks, found among many -------------------------------------------

ENV = environment_of(None)
RESULT = Result(
    job_id="job-1",
    outcome=Outcome.SUCCEEDED,
    model_id="small",
    engine="vllm",
    text="Aspirin thins the blood. \x1b[31mReally.",
    sources=["pmid:1"],
    source_details=[SourceDetails(id="pmid:1", url="https://x.example/1", title="On aspirin")],
    citations=[Citation(start=0, end=24, source="pmid:1", support=Support.EXACT)],
    notes=["source 2 was left out: it was late"],
    timings=Timings(queued_ms=1, enrich_ms=2, infer_ms=3),
    created_at=1_700_000_000,
)
FAILED = Result(
    job_id=f"batch_{'0' * 32}.1",
    outcome=Outcome.FAILED,
    error=ResultError(code="internal_error", message="the engine failed"),
    created_at=1_700_000_000,
)


def row(tenant: str, result: Result, **changed: Any) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "job_id": result.job_id,
        "url": "/v1/jobs",
        "status": str(result.outcome),
        "created_at": 1_700_000_000_000,
        "not_before": 1_700_000_000_500,
        "finished_at": 1_700_000_001_000,
        "submitted_by": "key:1",
        "prompt_sha256": "ab" * 32,
        "metadata": {},
        "result": write_result(result),
        **changed,
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    url = f"sqlite:///{tmp_path}/store.db"
    opened = Store.open(url)
    batch = f"batch_{'0' * 32}"
    rows = [row("acme", RESULT), row("other", RESULT)]
    attempt = {"topic_partition": 0, "tenant": "acme", "job_id": "job-1", "webhook_id": "msg_1"}
    details = [{"origin": "https://h.example", "status": 503, "error": "server_error", "attempt": 1}]
    details.append({"origin": "https://h.example", "status": 204, "error": None, "attempt": 2})

    def fill(connection: Any) -> None:
        connection.execute(jobs.insert(), rows)
        connection.execute(
            job_attempts.insert(),
            [{**attempt, "topic_offset": n, "at": 1_700_000_002_000 + n, "details": d} for n, d in enumerate(details)],
        )
        put_batch(connection, batch, 2, status="completed")
        write_results(connection, [result_record(FAILED)])

    opened.submit(fill).result()
    opened.close()
    yield url


def test_one_page_names_the_submitter_the_model_and_the_callbacks(store: str) -> None:
    page = postback_here("trace", "job-1", "--tenant", "acme", "--store", store, env=ENV)
    assert page.returncode == 0, page.stderr
    assert page.stdout.splitlines() == [
        "job        job-1, tenant acme, succeeded",
        "submitted  2023-11-14T22:13:20.000Z by key:1 through /v1/jobs",
        "scheduled  for 2023-11-14T22:13:20.500Z",
        f"prompt     sha256 {'ab' * 32}",
        "model      small on engine vllm",
        "phases     queued 1 ms, sources 2 ms, model 3 ms",
        "finished   2023-11-14T22:13:21.000Z as succeeded",
        "note       source 2 was left out: it was late",
        "source     pmid:1 “On aspirin”",
        "citation   exact by pmid:1: “Aspirin thins the blood.”",
        "callback   2023-11-14T22:13:22.000Z attempt 1 to https://h.example failed (server_error), status 503",
        "callback   2023-11-14T22:13:22.001Z attempt 2 to https://h.example delivered, status 204",
    ]


def test_without_a_tenant_each_tenants_job_of_that_id_is_shown(store: str) -> None:
    found = postback_here("trace", "job-1", "--store", store, "--json", env=ENV).stdout.splitlines()
    assert [json.loads(line)["tenant"] for line in found] == ["acme", "other"]
    assert json.loads(found[0])["result"]["citations"][0]["text"] == "Aspirin thins the blood."


def test_a_batchs_line_names_its_file_and_its_error(store: str) -> None:
    page = postback_here("trace", FAILED.job_id, "--store", store, env=ENV).stdout
    assert f"batch      batch_{'0' * 32}, line 1, file file-1" in page
    assert "error      internal_error: the engine failed" in page
    assert "callback   none was tried" in page
    waiting = postback_here("trace", f"batch_{'0' * 32}.0", "--store", store, env=ENV)
    assert waiting.returncode == 0, waiting.stderr


def test_an_unknown_job_is_named(store: str) -> None:
    refused = postback_here("trace", "job-7", "--store", store, env=ENV)
    assert refused.returncode == 1
    assert "has no job job-7" in refused.stderr
