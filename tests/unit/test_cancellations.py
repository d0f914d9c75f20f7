"""Cancelled jobs and a worker's handling of them, with a real handler and a real engine, without Kafka."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from schemas.codec import Origin, read_job, read_result
from schemas.control import (
    ControlState,
    InvalidControl,
    JobControl,
    JobKey,
    batch_of,
    job_key_bytes,
    read_job_key,
    write_control,
)
from schemas.job import LONGEST_TTL_SECONDS, Sources
from schemas.topics import LANES_KEPT_MS
from telemetry.hand_clock import SetClock
from telemetry.metrics import Metrics
from tests.handlers import CLOCK, inference_handler
from tests.unit.echo_worker import HOOK, headers_of, record, working
from tests.virtual_time import in_virtual_time
from workers.egress import EgressPolicy, Guard
from workers.engines.base import Completion, EngineUnavailable, GenerationRequest
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence
from workers.enrichment.settings import EnrichmentSettings
from workers.inference import lifetime
from workers.inference.lifetime import KEPT_MS, Cancellations, Lifetimes, Run

NOW_MS = round(CLOCK.time() * 1000)
PLACE = Origin("topic-uuid", 3, 7)


def control(job_id: str, tenant: str = "default", at: int = NOW_MS) -> tuple[bytes, bytes]:
    """Key and value of a cancellation."""
    said = JobControl(tenant=tenant, job_id=job_id, state=ControlState.CANCELLED, at=at)
    return job_key_bytes(said.key), write_control(said)


@contextmanager
def told(cancellations: Cancellations, job: JobKey, stop: Callable[[], object]) -> Iterator[None]:
    """Run a job during the block."""
    run = Run(job, stop)
    cancellations.begin(run)
    yield
    cancellations.end(run)


def test_a_job_is_known_by_its_tenant_and_its_id_and_a_tombstone_takes_the_cancellation_back() -> None:
    cancellations = Cancellations(CLOCK)
    cancellations.apply(*control("a", "acme"))
    assert cancellations.holds(("acme", "a"))
    assert not cancellations.holds(("globex", "a"))

    cancellations.apply(job_key_bytes(("acme", "a")), None)
    assert not cancellations.holds(("acme", "a"))


def test_one_record_cancels_all_lines_of_a_batch_and_stops_those_that_run() -> None:
    batch, other = "batch_" + "a" * 32, "batch_" + "b" * 32
    cancellations, stopped = Cancellations(CLOCK), list[str]()
    running = [("acme", f"{batch}.0"), ("acme", f"{batch}.17"), ("acme", f"{other}.0"), ("globex", f"{batch}.0")]
    with ExitStack() as stack:
        for job in running:
            stack.enter_context(told(cancellations, job, partial(stopped.append, " ".join(job))))
        cancellations.apply(*control(batch, "acme"))

    assert stopped == [f"acme {batch}.0", f"acme {batch}.17"]
    assert [cancellations.holds(job) for job in running] == [True, True, False, False]
    assert not cancellations.holds(("acme", f"{batch}.x"))
    cancellations.apply(job_key_bytes(("acme", batch)), None)
    assert not cancellations.holds(running[0])


async def test_a_mass_cancellation_looks_at_no_other_job_and_lets_the_loop_run_between_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an earlier version each record looked at every running job, which held the event loop for seconds."""
    looked_at = list[str]()

    def watched(job_id: str) -> str | None:
        looked_at.append(job_id)
        return batch_of(job_id)

    monkeypatch.setattr(lifetime, "batch_of", watched)
    monkeypatch.setattr(lifetime, "STOPPING_SECONDS", 0.0)
    batch, stopped = "batch_" + "a" * 32, list[int]()
    cancellations = Cancellations(CLOCK)
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(told(cancellations, ("acme", f"{batch}.{number}"), partial(stopped.append, number)))
            stack.enter_context(told(cancellations, ("acme", f"alone_{number}"), partial(stopped.append, -number)))
        with told(cancellations, ("acme", f"{batch}.3"), partial(stopped.append, 3)):
            looked_at.clear()
            cancellations.apply(*control(batch, "acme"))
            assert (stopped, looked_at) == ([0], [])
        await asyncio.sleep(0)
        assert stopped == [0, 1]
        cancellations.apply(*control("unknown", "acme"))
        while len(stopped) < 3:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert (stopped, looked_at) == ([0, 1, 2], []), "the run that had ended is not stopped"


async def test_work_that_cancels_itself_is_not_begun_again() -> None:
    """In an earlier version the work was begun again without pause, for ever, and the event loop stood still."""
    lifetimes, began = Lifetimes(Cancellations(CLOCK), CLOCK), list[int]()
    received = read_job(b'{"prompt":"Who?"}', None, PLACE, NOW_MS)

    async def cancels_itself() -> None:
        began.append(len(began))
        if len(began) > 1:
            raise AssertionError("begun again")
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await lifetimes.until_cancelled(received, cancels_itself)
    assert began == [0]


async def test_each_run_is_stopped_at_its_own_deadline_unless_it_has_ended() -> None:
    clock, stopped = SetClock(NOW_MS / 1000), list[int]()
    lifetimes = Lifetimes(Cancellations(clock), clock)
    jobs = [read_job(b'{"prompt":"Who?","ttl_seconds":%d}' % ttl, None, PLACE, NOW_MS) for ttl in (30, 10, 20, 15)]
    runs = [lifetimes.begin(job, partial(stopped.append, number)) for number, job in enumerate(jobs)]
    lifetimes.end(runs[3])
    for seconds, late in ((9, []), (10, [1]), (20, [1, 2]), (40, [1, 2, 0])):
        clock.now = NOW_MS / 1000 + seconds
        lifetimes._deadlines._stop_late()
        assert stopped == late


class Prompt:
    """A request whose method ends it."""

    def stop(self) -> None:
        raise AssertionError("an ended run is stopped")


async def test_the_deadlines_of_jobs_that_have_ended_are_not_kept_until_they_pass() -> None:
    """A job may live for six days, and a worker ends a hundred million jobs meanwhile."""
    lifetimes, received = Lifetimes(Cancellations(CLOCK), CLOCK), read_job(b'{"prompt":"Who?"}', None, PLACE, NOW_MS)
    prompts = [Prompt() for _ in range(5 * lifetime.MOST_ENDED)]
    kept = [weakref.ref(prompt) for prompt in prompts]
    while prompts:
        lifetimes.end(lifetimes.begin(received, prompts.pop().stop))
    assert len(lifetimes._deadlines._runs) <= lifetime.MOST_ENDED + 1
    assert not any(prompt() for prompt in kept), "an ended run holds its request"


def test_a_cancellation_older_than_any_job_is_forgotten() -> None:
    cancellations = Cancellations(CLOCK)
    cancellations.apply(*control("old", at=NOW_MS - KEPT_MS - 60_000))
    cancellations.apply(*control("new"))

    assert not cancellations.holds(("default", "old"))
    assert len(cancellations) == 1


def test_a_record_that_is_dated_in_the_future_is_forgotten_with_those_around_it() -> None:
    clock = SetClock(NOW_MS / 1000)
    cancellations = Cancellations(clock)
    year_ms = 365 * 24 * 3600 * 1000
    for number, at in enumerate((NOW_MS, NOW_MS + year_ms, NOW_MS + 1, NOW_MS + year_ms)):
        cancellations.apply(*control(f"job_{number}", at=at))
    assert len(cancellations) == 4
    clock.now += KEPT_MS / 1000 + 1
    cancellations.apply(*control("new", at=round(clock.now * 1000)))
    assert len(cancellations) == 1


def test_a_cancellation_outlives_every_job_that_it_could_be_of() -> None:
    assert KEPT_MS > LANES_KEPT_MS > LONGEST_TTL_SECONDS * 1000
    clock = SetClock(NOW_MS / 1000)
    cancellations = Cancellations(clock)
    cancellations.apply(*control("old"))
    clock.now += LANES_KEPT_MS / 1000
    cancellations.apply(*control("new", at=round(clock.now * 1000)))
    assert cancellations.holds(("default", "old"))


@pytest.mark.parametrize(
    ("key", "value"),
    [(None, b"{}"), (b'["a"]', b"{}"), (b'["a","b","c"]', None), (b"\xff", None), (control("a")[0], b"[]")],
)
def test_a_record_that_cannot_be_read_changes_nothing(
    key: bytes | None, value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    cancellations = Cancellations(CLOCK)
    cancellations.apply(key, value)

    assert len(cancellations) == 0
    assert "control-unreadable" in caplog.text


def test_the_key_of_a_job_can_be_read_back() -> None:
    assert read_job_key(job_key_bytes(("acme", "job/1"))) == ("acme", "job/1")
    with pytest.raises(InvalidControl):
        read_job_key(b'["a b","c"]')


async def test_a_job_that_is_cancelled_before_its_turn_is_not_begun_and_its_callback_says_so() -> None:
    async with working() as worker:
        worker.handler.cancellations.apply(*control("job_1"))
        [output] = await worker.outputs(record(job_id="job_1"))
        other = await worker.result(record(job_id="job_2"))
    result = read_result(output.value)
    assert (result.outcome, result.usage, result.text) == ("cancelled", None, None)
    assert result.error is not None
    assert (result.error.code, headers_of(output)["callback-url"]) == ("cancelled", HOOK)
    assert other.outcome == "succeeded"
    assert worker.sample("postback_jobs_total", outcome="cancelled") == 1


async def test_a_job_that_runs_when_it_is_cancelled_is_cut_off() -> None:
    async with working() as worker:
        running = asyncio.ensure_future(worker.result(record(job_id="job_1", prompt="[[sleep 600]]")))
        while worker.engine.load().running == 0:
            await asyncio.sleep(0.001)
        worker.handler.cancellations.apply(*control("job_1", "globex"))
        worker.handler.cancellations.apply(*control("job_1"))
        result = await running
    assert (result.outcome, result.text) == ("cancelled", None)


async def test_a_job_whose_cancellation_is_taken_back_before_the_engine_has_ended_it_is_answered() -> None:
    """The cancellation and the record that takes it back may arrive at once.

    In an earlier version the result was `expired`, hours before the job's deadline.
    """
    async with working() as worker:
        running = asyncio.ensure_future(worker.result(record(job_id="job_1", prompt="[[sleep 0.05]] Who?")))
        while worker.engine.load().running == 0:
            await asyncio.sleep(0.001)
        worker.handler.cancellations.apply(*control("job_1"))
        worker.handler.cancellations.apply(job_key_bytes(("default", "job_1")), None)
        result = await running
    assert (result.outcome, result.error) == ("succeeded", None)


async def test_sources_are_read_again_if_a_cancellation_is_taken_back_while_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an earlier version the sources were not read again, and the job failed with `no_sources`."""
    async with working() as worker:
        read, hangs = list[str](), asyncio.Event()

        async def enrich(sources: Sources, question: str, **bounds: object) -> Evidence:
            read.append(question)
            if len(read) == 1:
                await hangs.wait()
            return Evidence(())

        monkeypatch.setattr(worker.enricher, "enrich", enrich)
        running = asyncio.ensure_future(worker.result(record(job_id="job_1", sources={"urls": ["http://a.example"]})))
        while not read:
            await asyncio.sleep(0.001)
        worker.handler.cancellations.apply(*control("job_1"))
        worker.handler.cancellations.apply(job_key_bytes(("default", "job_1")), None)
        result = await running
    assert (result.outcome, len(read)) == ("succeeded", 2)


class AwayEngine(EchoEngine):
    """An engine that answers every try with 503."""

    async def generate(self, request: GenerationRequest) -> Completion:
        raise EngineUnavailable("the server answered 503")


@in_virtual_time
async def test_a_job_that_waits_for_an_engine_that_is_away_ends_when_it_is_cancelled() -> None:
    """The pauses between tries grow to 30 s. In an earlier version, a cancelled job ended only after such a pause."""
    metrics = Metrics()
    enricher = Enricher(EnrichmentSettings(), Guard(EgressPolicy()), CLOCK, metrics)
    handler = inference_handler(AwayEngine(EchoSettings(), metrics), enricher, metrics)
    running = asyncio.ensure_future(handler.handle(record(job_id="job_1")))
    await asyncio.sleep(35)  # this sleep ends within a pause between tries, from 31.5 s to 61.5 s
    handler.cancellations.apply(*control("job_1"))
    [output] = await running
    assert (read_result(output.value).outcome, asyncio.get_running_loop().time()) == ("cancelled", 35.0)
