"""Affinity: jobs whose prompts begin alike go to one place, and no place gets many more jobs than the mean."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.sharding import Partitioner, prefix_key
from schemas.affinity import MOST_LOAD, SLACK, place_of, prefix_of, shard_of
from schemas.codec import write_job
from schemas.job import Job
from tests.any_json import SCALARS, any_json
from tests.unit.echo_worker import record, working
from workers.engines.base import Completion, GenerationRequest

TOPIC = "model_requests"
SYSTEM = {"role": "system", "content": "You are a nurse."}
SOURCES: dict[str, Any] = {"urls": ["https://a.example/"], "search": {"provider": "pubmed", "query": "fever"}}


def asked(question: str, system: object = SYSTEM, sources: object = None) -> dict[str, Any]:
    """A job with this question. Absent parts are left out."""
    messages = [*([system] if system else []), {"role": "user", "content": question}]
    return {"messages": messages, **({"sources": sources} if sources else {})}


def written(job: object) -> bytes:
    return json.dumps(job).encode()


def test_jobs_with_the_same_system_message_and_sources_have_one_key_whatever_they_ask() -> None:
    jobs = [asked(question, sources=SOURCES) for question in ("Why?", "How?")]
    assert len({prefix_key(written(job)) for job in jobs}) == 1
    others = [
        asked("Why?"),
        asked("Why?", None, SOURCES),
        asked("Why?", {"role": "system", "content": "You are a judge."}, SOURCES),
        asked("Why?", sources={**SOURCES, "urls": ["https://b.example/"]}),
        asked("Why?", sources={**SOURCES, "profile": "medical"}),
        asked("Why?", sources={**SOURCES, "searches": [{"provider": "arxiv", "query": "fever"}]}),
        asked("Why?", sources={**SOURCES, "search": {**SOURCES["search"], "domains": ["who.int"]}}),
        asked("Why?", sources={"documents": [{"id": "a", "text": "One."}]}),
        asked("Why?", sources={"documents": [{"id": "a", "text": "Two."}]}),
    ]
    assert len({prefix_key(written(job)) for job in (*others, jobs[0])}) == len(others) + 1


def test_a_jobs_key_is_the_same_in_each_form_in_which_it_is_written() -> None:
    searches = [{"provider": "arxiv", "query": "fever", "since": "2020-01-01"}]
    documents = [{"id": "a", "text": "One."}]
    job = asked("Why?", sources={**SOURCES, "documents": documents, "searches": searches, "required": True})
    parsed = Job.model_validate(job)
    line = {
        "custom_id": "c",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", **job},
    }
    response = {
        "custom_id": "c",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": "m", "instructions": SYSTEM["content"], "input": "Why?", "sources": job["sources"]},
    }
    parts = asked("Why?", {"role": "system", "content": [{"type": "text", "text": SYSTEM["content"]}]}, job["sources"])
    keys = {prefix_key(value) for value in (written(job), write_job(parsed), *map(written, (line, response, parts)))}
    assert keys == {prefix_of(parsed.model_dump(mode="json")), prefix_of(job)}
    assert len(keys) == 1


def test_a_plain_prompt_has_no_key() -> None:
    assert prefix_key(written({"prompt": "Why?"})) is None
    assert prefix_key(written(asked("Why?", None))) is None


KEYS = ["messages", "role", "content", "text", "sources", "documents", "search", "urls", "body", "url", "method"]
NOISE = any_json(st.text() | st.sampled_from(KEYS), SCALARS | st.sampled_from(["system", "POST"]), leaves=30)


@given(NOISE)
def test_any_json_has_a_key_or_none(document: Any) -> None:
    key = prefix_key(json.dumps(document).encode())
    if isinstance(document, dict) and "body" not in document:
        assert prefix_of(document) == key


@given(st.none() | st.binary())
def test_any_bytes_have_no_key_unless_they_are_a_job(value: bytes | None) -> None:
    assert prefix_key(value) is None


@given(st.lists(st.none() | st.binary(min_size=8, max_size=8), max_size=300), st.integers(1, 12))
def test_no_place_is_loaded_much_more_than_the_others_whatever_the_keys(keys: list[bytes | None], count: int) -> None:
    loads = [0] * count
    for key in keys:
        loads[place_of(key, range(count), loads)] += 1
        assert max(loads) <= math.ceil(MOST_LOAD * sum(loads) / count) + SLACK


def test_a_lost_place_moves_only_the_keys_that_it_had() -> None:
    keys = [number.to_bytes(8) for number in range(300)]
    places = list("abcdef")
    before = {key: places[place_of(key, places, [0] * 6)] for key in keys}
    after = {key: places[place_of(key, places[:5], [0] * 5)] for key in keys}
    assert {before[key] for key in keys if before[key] != after[key]} == {"f"}


def partitions_of_jobs(jobs: list[dict[str, Any]], tenant: str = "acme") -> list[int]:
    partitioner = Partitioner()
    return [partitioner.partition(TOPIC, tenant, 12, written(job)) for job in jobs]


def test_jobs_whose_prompts_begin_alike_share_a_partition_of_their_tenants_shard() -> None:
    systems = [{"role": "system", "content": f"You are nurse {number}."} for number in range(40)]
    jobs = [asked(f"Question {turn}?", system) for turn in range(50) for system in systems]
    chosen = partitions_of_jobs(jobs)
    assert set(chosen) == set(shard_of("acme", 12))
    used = [len(set(chosen[number :: len(systems)])) for number in range(len(systems))]
    assert sum(used) / len(used) < 1.6, "without affinity, each prefix is in all 4 partitions"
    assert max(Counter(chosen).values()) <= MOST_LOAD * len(jobs) / 4 + SLACK


def test_jobs_without_a_common_start_take_turns_over_the_shard() -> None:
    chosen = partitions_of_jobs([{"prompt": "Why?"}] * 40)
    assert set(Counter(chosen).values()) == {10}


def test_a_single_prefix_does_not_fill_a_partition_since_old_jobs_cease_to_count() -> None:
    partitioner = Partitioner()
    for _ in range(20_000):
        partitioner.partition(TOPIC, "acme", 12, b'{"prompt": "Why?"}')
    burst = [partitioner.partition(TOPIC, "acme", 12, written(asked("Why?"))) for _ in range(1000)]
    assert burst.index(next(place for place in burst if place != burst[0])) < 600


async def test_an_engine_hears_the_key_of_each_job_with_a_system_message(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes | None] = []

    async def generate(request: GenerationRequest) -> Completion:
        heard.append(request.prefix_key)
        return Completion("x", "stop", 1, 1)

    async with working() as worker:
        monkeypatch.setattr(worker.engine, "generate", generate)
        for body in (asked("Why?"), {"prompt": "Why?"}):
            await worker.result(record(body))
    assert heard == [prefix_of(asked("Why?")), None]
