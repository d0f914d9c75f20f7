"""The number of jobs that the stage hands over, and the place to which a job's prompt leads it."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.admission import ENGINES, Simulation
from producers.sharding import Partitioner, prefix_key
from schemas.affinity import MOST_LOAD, SLACK, place_of, prefix_of, shard_of
from schemas.codec import write_job
from schemas.job import Job
from telemetry.hand_clock import HandClock
from tests.any_json import SCALARS, any_json
from tests.unit.echo_worker import record, working
from workers.engines.base import Completion, EngineLoad, GenerationRequest
from workers.inference.pace import IDLE_SHARE, EnginePace, EnrichmentLead, Refill


def test_enrichment_has_as_many_jobs_as_littles_law_wants() -> None:
    clock = HandClock()
    lead = EnrichmentLead(clock, 0.25, memory_seconds=2.0)
    assert lead.jobs() == 0
    for _ in range(60):
        for _ in range(10):  # forty answers come in a second, each after 3 s of enrichment
            lead.answered(3.0)
        clock.sleep(0.25)
        lead.jobs()
    assert lead.jobs() == 120
    for _ in range(60):
        lead.answered(0.0)
        clock.sleep(0.25)
        lead.jobs()
    assert lead.jobs() == 0


def test_a_batch_that_ends_at_once_moves_the_number_by_its_share() -> None:
    clock = HandClock()
    lead = EnrichmentLead(clock, 0.25, memory_seconds=5.0)
    lead.answered(100.0)
    clock.sleep(0.25)
    assert 15 < lead.jobs() < 25


def looked(refill: Refill, clock: HandClock, *steps: tuple[int, float], running: int = 64) -> int:
    """Step by step, count answers and let seconds pass; return the number of jobs at the last look."""
    seen = 0
    for count, seconds in steps:
        for _ in range(count):
            refill.answered()
        clock.sleep(seconds)
        seen = refill.look(running)
    return seen


def refill_of(clock: HandClock) -> Refill:
    return Refill(clock, period_seconds=0.25, memory_seconds=30.0)


def test_the_queue_leaves_two_percent_of_the_places_idle_until_the_next_refill() -> None:
    clock = HandClock()
    assert looked(refill_of(clock), clock, *[(10, 0.05)] * 200, running=100) == 8
    assert looked(refill_of(clock), clock, *[(10, 0.05)] * 200, running=500) == 0


def test_a_long_interval_counts_for_thirty_seconds() -> None:
    clock = HandClock()
    refill = refill_of(clock)
    steady = [(8, 0.05)] * 200
    assert looked(refill, clock, *steady) == 7
    assert looked(refill, clock, (60, 1.0), *steady) > 20
    assert looked(refill, clock, *[(8, 0.05)] * 360) > 20
    assert looked(refill, clock, *[(8, 0.05)] * 60) == 7


def test_answers_that_come_at_once_need_a_longer_queue_than_the_same_number_one_by_one() -> None:
    clock = HandClock()
    assert looked(refill_of(clock), clock, *[(64, 0.025), *[(0, 0.025)] * 9] * 100) == 52
    assert looked(refill_of(clock), clock, *[(6, 0.025), (7, 0.025)] * 500) == 6


def test_an_engine_that_answers_all_its_requests_between_two_looks_gets_more_and_more() -> None:
    clock = HandClock()
    pace = EnginePace(lambda: EngineLoad(running=0, waiting=0, free=64), None, clock)
    for _ in range(100):
        for _ in range(pace.room()):
            pace.answered(0.0)
        clock.sleep(0.05)
    assert pace.room() > 1000


def test_a_second_look_at_the_same_time_changes_nothing_and_loses_no_answer() -> None:
    clock = HandClock()
    refill = refill_of(clock)
    seen = looked(refill, clock, *[(10, 0.05)] * 200)
    assert (refill.look(64), refill.look(64)) == (seen, seen)
    for _ in range(300):
        refill.answered()
    refill.look(64)
    assert looked(refill, clock, (0, 3.0)) > 30


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0.25, 0.5)), min_size=1, max_size=40),
    st.integers(0, 300),
)
@example([(79, 0.5), (79, 0.4481815346775352)], 0)
def test_the_queue_is_the_shortest_within_the_idle_share(steps: list[tuple[int, float]], running: int) -> None:
    clock = HandClock(0.0)
    seen = looked(refill_of(clock), clock, *steps, running=running)

    def idle(queue: int) -> float:
        return sum(max(0, count - queue) * seconds for count, seconds in steps)

    allowed = IDLE_SHARE * running * sum(seconds for _, seconds in steps)
    assert 0 <= seen <= max(count for count, _ in steps)
    assert idle(seen) <= allowed + 1e-6
    assert seen == 0 or idle(seen - 1) > allowed - 1e-6


def test_free_places_are_filled_at_once_and_an_idle_engine_has_no_queue() -> None:
    pace = EnginePace(lambda: EngineLoad(running=0, waiting=0, free=64), None, HandClock())
    assert pace.room() == 64
    with pace.preparing():
        assert pace.room() == 63


@pytest.mark.parametrize(("running", "waiting"), [(1, 1), (4, 1), (20, 3), (64, 8), (1000, 8)])
def test_an_eighth_of_the_running_jobs_waits_or_eight_if_that_is_less(running: int, waiting: int) -> None:
    pace = EnginePace(lambda: EngineLoad(running=running, waiting=0, free=0), None, HandClock())
    assert pace.room() == waiting


def test_a_fixed_number_waits_whatever_the_engine_answers() -> None:
    pace = EnginePace(lambda: EngineLoad(running=64, waiting=3, free=0), 10, HandClock())
    for _ in range(40):
        pace.answered(0.0)
    assert pace.room() == 7


@pytest.mark.parametrize("engine", ENGINES)
def test_the_adaptive_queue_keeps_a_simulated_engine_as_busy_as_a_long_fixed_one(engine: str) -> None:
    adaptive, long = (Simulation(engine, fixed).run(60.0, 20.0) for fixed in (None, 256))
    assert adaptive.busy >= 0.97 * long.busy
    assert adaptive.wait_seconds <= 0.15 * long.wait_seconds


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
