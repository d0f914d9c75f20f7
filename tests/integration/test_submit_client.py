"""Submissions to a real broker through the client."""

from __future__ import annotations

import json

import pytest

from producers.client import Client, SubmitError
from producers.errors import TopicMissing
from producers.results import ResultsReader
from schemas.affinity import shard_of
from schemas.codec import Origin, read_job
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.settings import KafkaSettings
from tests.integration.answering_jobs import answering
from tests.integration.submitted import records_of

pytestmark = pytest.mark.broker

JOBS = 300


def test_jobs_arrive_stamped_and_spread_over_the_tenants_shard(fleet: KafkaSettings) -> None:
    told: list[tuple[int, SubmitError | None]] = []
    with Client(fleet) as client:
        jobs = (Job(prompt=f"q{n}") for n in range(JOBS))
        receipt = client.submit(jobs, tenant="acme", on_answer=lambda index, error: told.append((index, error)))
    assert (receipt.accepted, receipt.errors) == (JOBS, [])
    assert told == [(index, None) for index in range(JOBS)]
    records = records_of(fleet, fleet.topics.requests())
    assert {record.key.decode() for record in records} == set(receipt.job_ids)
    assert len(set(receipt.job_ids)) == JOBS == len(records)
    assert {record.partition for record in records} == set(shard_of("acme", fleet.partitions))
    received = [read_job(r.value, r.headers, Origin("t", r.partition, r.offset), r.timestamp) for r in records]
    assert {job.tenant for job in received} == {"acme"}
    assert {job.job_id for job in received} == set(receipt.job_ids)
    # The client, which has no collector, adds no trace header: the workers begin the traces.
    assert {name for record in records for name, _ in record.headers} == {"tenant"}


def test_a_jobs_own_id_is_kept_and_the_bulk_lane_is_another_topic(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        receipt = client.submit([Job(prompt="q", job_id="mine")], lane="bulk")
    [record] = records_of(fleet, fleet.topics.requests(bulk=True))
    assert receipt.job_ids == ["mine"]
    assert json.loads(record.value) == {"job_id": "mine", "prompt": "q"}
    assert records_of(fleet, fleet.topics.requests()) == []


def test_a_job_that_is_too_large_is_refused_and_stops_none_of_the_others(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        receipt = client.submit([Job(prompt="a"), Job(prompt="x" * 600_000, job_id="large"), Job(prompt="b")])
    assert receipt.accepted == 2
    assert [(error.index, error.job_id, error.perhaps) for error in receipt.errors] == [(1, "large", False)]
    assert "larger than 524288 bytes" in receipt.errors[0].reason


def test_jobs_near_the_limit_are_accepted(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        receipt = client.submit([Job(prompt="x" * 524_000, job_id=f"j{n}") for n in range(4)])
    assert (receipt.job_ids, receipt.errors) == (["j0", "j1", "j2", "j3"], [])


def test_a_missing_topic_is_an_error_before_anything_is_sent(fleet: KafkaSettings) -> None:
    with Client(fleet.model_copy(update={"topic_prefix": "nowhere."})) as client, pytest.raises(TopicMissing):
        client.submit([Job(prompt="q")])


def test_results_that_were_there_before_and_aborted_ones_are_not_seen(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        client.submit([Job(prompt="early")])
    with ResultsReader(fleet) as early, answering(fleet, {}):
        while not (seen := list(early.poll())):
            pass
        assert [settled.result.outcome for settled in seen] == [Outcome.SUCCEEDED]
        with ResultsReader(fleet) as late, Client(fleet) as client:
            receipt = client.submit([Job(prompt="late")], tenant="acme")
            while not (seen := list(late.poll())):
                pass
    assert [(settled.tenant, settled.result.job_id) for settled in seen] == [("acme", receipt.job_ids[0])]
