"""A random walk cancels jobs, takes cancellations back and lets jobs expire in every state, on a real broker and vLLM.

The walk also cancels jobs before a worker runs, and before their records exist; some jobs wait in the bulk lane after a
deferral, and others are forwarded to the worker of another lane. A naive model says which outcomes each job may have:
more than one only if the order changed while a worker ran.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import pytest
from confluent_kafka import Producer
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from bench.committed import committed_records
from cli.operations.cancel import cancel, take_back
from cli.operations.topics import create_topics
from schemas.groups import INFERENCE_GROUP
from schemas.settings import KafkaSettings
from telemetry.metrics import Metrics
from tests.asking import request_of
from tests.engine_processes import engine_of, frozen
from tests.handlers import CLOCK
from tests.messages import value_of
from workers.egress import EgressPolicy, Guard
from workers.engines.vllm import VllmEngine
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.handler import InferenceHandler, Parts
from workers.inference.lifetime import KEPT_MS
from workers.inference.routing import Registry
from workers.inference.settings import WorkerSettings
from workers.kafka.compacted import Follower
from workers.stage.build import group_stage
from workers.stage.settings import StageSettings
from workers.stage.stage import Stage

pytestmark = [
    pytest.mark.broker,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(1_200),
]

LONG = 480
IN_THE_PAST = b"1700000000000"
KINDS: dict[str, dict[str, Any]] = {
    "short": {"max_tokens": 2},
    "long": {"max_tokens": LONG},
    "brief": {"max_tokens": LONG, "ttl_seconds": 0.5},
    "past": {"max_tokens": 2},
}
LANE = "elsewhere"
"""The lane of a second worker, and the name of its model: the first worker forwards jobs for it."""
LANES = (None, LANE)
WAYS = ("straight", "deferred", "forwarded")
OUTCOMES = {"short": {"succeeded"}, "long": {"succeeded"}, "brief": {"succeeded", "expired"}, "past": {"expired"}}
"""The possible outcomes of each kind of job if no order cancels the job."""
MOST_JOBS = 9
NUMBERS = st.integers(0, MOST_JOBS - 1)
PATIENCE_SECONDS = 120.0


class Worker:
    """The stage of one lane's worker, which starts and stops in this process, around an engine that others share."""

    def __init__(
        self, kafka: KafkaSettings, engine: VllmEngine, enricher: Enricher, metrics: Metrics, lane: str | None = None
    ) -> None:
        self._kafka = kafka
        self._lane = lane
        self._engine = engine
        self._enricher = enricher
        self._metrics = metrics
        self._control: Follower | None = None
        self._running: asyncio.Task[None] | None = None
        self._stage: Stage | None = None

    async def start(self) -> None:
        topics = self._kafka.topics
        registry = Registry((*self._engine.models, "default"), self._lane, {LANE: LANE})
        handler = InferenceHandler(
            Parts(
                engine=self._engine,
                enricher=self._enricher,
                registry=registry,
                callback_policy=EgressPolicy(),
                topics=topics,
                topic_ids={},
                settings=WorkerSettings(lane=self._lane),
                clock=CLOCK,
                metrics=self._metrics,
            )
        )
        self._control = Follower(self._kafka, CLOCK)
        await self._control.follow(topics.control, handler.cancellations.apply, KEPT_MS)
        outputs = [topics.results, topics.dead_letters, *topics.requests_of(LANE)]
        parts = handler, CLOCK, self._metrics, handler.pace, handler.sharing, outputs
        read, replica = topics.requests_of(self._lane), f"r-{self._lane}"
        self._stage = group_stage(StageSettings(INFERENCE_GROUP), self._kafka, read, replica, *parts)
        self._running = asyncio.create_task(self._stage.run())

    async def stop(self) -> None:
        if self._stage is not None and self._control is not None and self._running is not None:
            self._stage.stop()
            await self._running
            await self._control.close()
            self._stage = None


class Fleet:
    """A broker, and each lane's worker on the test's loop, for a walk that calls them from another thread."""

    def __init__(
        self, kafka: KafkaSettings, workers: dict[str | None, Worker], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.kafka = kafka
        self.workers = workers
        self._loop = loop
        self._producer = Producer(kafka.client_config())

    def do(self, call: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(call, self._loop).result(PATIENCE_SECONDS)

    def submit(self, job: dict[str, Any], deadline: bytes | None = None, way: str = "straight") -> None:
        """Write a job to the first lane, or to the bulk lane with the header of a deferral."""
        headers: list[tuple[str, str | bytes | None]] = [] if deadline is None else [("deadline", deadline)]
        if way == "deferred":
            headers.append(("deferred", b"1"))
        topic = self.kafka.topics.requests(bulk=way == "deferred")
        self._producer.produce(topic, json.dumps(job).encode(), headers=headers)
        assert self._producer.flush(60) == 0

    def results(self, walk: str) -> dict[str, dict[str, Any]]:
        """The results of one walk; fails if a job has two."""
        records = committed_records(self.kafka.client_config(), self.kafka.topics.results)
        found = [one for one in (json.loads(value_of(each)) for each in records) if one["job_id"].startswith(walk)]
        assert [name for name, count in Counter(one["job_id"] for one in found).items() if count > 1] == []
        return {one["job_id"]: one for one in found}


class Walk(RuleBasedStateMachine):
    """Submits jobs, cancels them, takes cancellations back, and starts and stops the worker, in a random order."""

    fleet: ClassVar[Fleet]
    wasted: ClassVar[float]
    """Tokens of unfinished answers in the results of all walks."""

    def __init__(self) -> None:
        super().__init__()
        self.walk = uuid.uuid4().hex
        self.kinds: dict[str, str] = {}
        self.orders: dict[str, set[bool]] = {}
        """Maps a job's name to the orders under which the job may end: True to cancel, False to answer."""
        self.now: dict[str, bool] = {}
        self.running: set[str | None] = set()
        """The lanes whose workers run."""
        self.checked: set[str] = set()

    def name(self, number: int) -> str:
        return f"{self.walk}-{number}"

    def ordered(self, name: str, *, is_cancelled: bool) -> None:
        before = self.orders.get(name, {False}) if self.running else set()
        self.orders[name] = {*before, is_cancelled}
        self.now[name] = is_cancelled

    @precondition(lambda self: len(self.kinds) < MOST_JOBS)
    @rule(kind=st.sampled_from(sorted(KINDS)))
    def submit(self, kind: str) -> None:
        """Submit a job of this kind on each way."""
        for way in WAYS:
            name = self.name(len(self.kinds))
            job = {"job_id": name, "prompt": "Who wrote the book?", "temperature": 0, **KINDS[kind]}
            if way == "forwarded":
                job["model_id"] = LANE
            self.fleet.submit(job, IN_THE_PAST if kind == "past" else None, way)
            self.kinds[name] = kind

    @rule(number=NUMBERS, at_once_taken_back=st.booleans())
    def cancel(self, number: int, at_once_taken_back: bool) -> None:
        name = self.name(number)
        cancel(self.fleet.kafka, "default", [name])
        self.ordered(name, is_cancelled=True)
        if at_once_taken_back:
            self.take_back(number)

    @rule(number=NUMBERS)
    def take_back(self, number: int) -> None:
        name = self.name(number)
        take_back(self.fleet.kafka, "default", [name])
        self.ordered(name, is_cancelled=False)

    @precondition(lambda self: len(self.running) < len(LANES))
    @rule(lane=st.sampled_from(LANES))
    def start(self, lane: str | None) -> None:
        if lane not in self.running:
            self.fleet.do(self.fleet.workers[lane].start())
            self.running.add(lane)

    @precondition(lambda self: self.running)
    @rule(lane=st.sampled_from(LANES))
    def stop(self, lane: str | None) -> None:
        if lane not in self.running:
            return
        self.fleet.do(self.fleet.workers[lane].stop())
        self.running.remove(lane)
        if not self.running:
            self.check(self.fleet.results(self.walk))
            self.orders = {name: {is_cancelled} for name, is_cancelled in self.now.items()}

    @precondition(lambda self: self.running)
    @rule(seconds=st.sampled_from([0.05, 0.3]))
    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def check(self, results: dict[str, dict[str, Any]]) -> None:
        for name in results.keys() - self.checked:
            outcome, orders = results[name]["outcome"], self.orders.get(name, {False})
            usage = results[name].get("usage")
            allowed = set[str]().union(*({"cancelled"} if order else OUTCOMES[self.kinds[name]] for order in orders))
            assert outcome in allowed, f"a {self.kinds[name]} job is {outcome}, with orders {orders}"
            if outcome in ("cancelled", "expired") and usage is not None:
                assert usage["completion_tokens"] < LONG
                Walk.wasted += usage["completion_tokens"]
        self.checked |= {*results}

    def teardown(self) -> None:
        for lane in LANES:
            self.start(lane)
        end = CLOCK.monotonic() + PATIENCE_SECONDS
        while (results := self.fleet.results(self.walk)).keys() != self.kinds.keys():
            assert CLOCK.monotonic() < end, f"no result of {self.kinds.keys() - results.keys()}"
            time.sleep(0.1)
        self.check(results)
        for lane in LANES:
            self.stop(lane)


def scheduled(metrics: Metrics, state: str) -> float:
    """The requests in a state by vLLM's own scheduler, as of its last step."""
    labels = {"rank": "0", "state": state}
    return metrics.registry.get_sample_value("postback_engine_requests", labels) or 0.0


async def left_over(engine: VllmEngine, metrics: Metrics) -> float:
    """The requests that vLLM's scheduler still runs or queues while no job waits for an answer.

    vLLM counts at each step, so three short requests bring the count up to date; the last one may still be counted. An
    unfinished answer would need hundreds of further steps.
    """
    for number in range(3):
        await engine.generate(request_of(f"after-{number}", prompt="Who wrote the book?", max_tokens=2))
    return max(0.0, scheduled(metrics, "running") + scheduled(metrics, "waiting") - 1)


async def until(condition: Callable[[], bool], what: str) -> None:
    end = CLOCK.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert CLOCK.monotonic() < end, what
        await asyncio.sleep(0.01)


async def test_a_job_cancelled_taken_back_or_late_in_any_state_has_the_one_result_that_its_orders_allow(
    fleet: KafkaSettings, vllm_engine: VllmEngine, vllm_metrics: Metrics
) -> None:
    create_topics(fleet, engines=[LANE])
    metrics = Metrics()
    enricher = Enricher(EnrichmentSettings(), Guard(EgressPolicy()), CLOCK, metrics)
    workers = {lane: Worker(fleet, vllm_engine, enricher, metrics, lane) for lane in LANES}
    Walk.fleet, Walk.wasted = Fleet(fleet, workers, asyncio.get_running_loop()), 0.0
    few = settings(
        max_examples=4,
        stateful_step_count=14,
        phases=[Phase.generate],  # `Phase.shrink` is left out, because it would take minutes
        suppress_health_check=[*HealthCheck],
        database=None,
    )
    await asyncio.to_thread(run_state_machine_as_test, Walk, settings=few)
    assert await left_over(vllm_engine, vllm_metrics) == 0
    wasted = metrics.registry.get_sample_value("postback_tokens_total", {"kind": "wasted"}) or 0.0
    assert wasted >= Walk.wasted


async def test_vllm_s_own_scheduler_ends_the_generations_of_cancelled_jobs(
    fleet: KafkaSettings, vllm_engine: VllmEngine, vllm_metrics: Metrics
) -> None:
    """The test freezes the engine while it cancels the jobs, so that the engine cannot finish them meanwhile."""
    metrics = Metrics()
    enricher = Enricher(EnrichmentSettings(), Guard(EgressPolicy()), CLOCK, metrics)
    worker = Worker(fleet, vllm_engine, enricher, metrics)
    around = Fleet(fleet, {None: worker}, asyncio.get_running_loop())
    names = [f"cancelled-{number}" for number in range(4)]
    for name in names:
        await asyncio.to_thread(around.submit, {"job_id": name, "prompt": "Who?", **KINDS["long"]})
    await worker.start()
    await until(lambda: scheduled(vllm_metrics, "running") == len(names), "vLLM does not run each job")
    with frozen(engine_of(os.getpid())):
        await asyncio.to_thread(cancel, fleet, "default", names)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (results := await asyncio.to_thread(around.results, "cancelled")).keys() != {*names}:
                await asyncio.sleep(0.1)
    assert {one["outcome"] for one in results.values()} == {"cancelled"}
    assert await left_over(vllm_engine, vllm_metrics) == 0
    await worker.stop()
