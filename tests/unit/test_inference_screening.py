"""The input filter in a worker: a job is flagged, redacted or rejected before its sources and its engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.codec import read_result
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.screening import ScreeningFinding, Verdict, write_findings
from schemas.topics import TENANT
from telemetry.clock import unix_ms
from tests.handlers import CLOCK, TOPICS
from tests.screening_rules import CARD, pii, regex, screen_of, words
from tests.unit.echo_worker import HOOK, headers_of, record, working
from workers.inference.input_filter import LONG_JOB_BYTES
from workers.screening.screen import Screen, Screened


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    return screen_of(
        tmp_path,
        pii(more='fields = ["prompt", "messages", "search", "metadata"]', name="private"),
        regex("falcon", "reject", name="project"),
        words(name="toxicity"),
    )


@pytest.mark.parametrize("filler", ["", " lorem ipsum" * LONG_JOB_BYTES], ids=["short", "long"])
async def test_a_redacted_job_is_answered_from_its_redacted_text(screen: Screen, filler: str) -> None:
    async with working(screen=screen) as worker:
        result = await worker.result(record(prompt=f"pay {CARD}{filler}", metadata={"card": CARD}, max_tokens=100_000))

    assert result.outcome is Outcome.SUCCEEDED
    assert result.text is not None and "pay [redacted:card]" in result.text
    assert result.metadata == {"card": "[redacted:card]"}
    assert result.screening == [
        ScreeningFinding(rule="private", kind="card", verdict=Verdict.REDACT, field=field, count=1)
        for field in ("prompt", "metadata")
    ]
    assert worker.sample("postback_screened_total", verdict="redact") == 1


async def test_a_flagged_job_is_answered_and_its_result_names_the_rule(screen: Screen) -> None:
    async with working(screen=screen) as worker:
        result = await worker.result(record(prompt="Who is the bastard?"))

    assert result.outcome is Outcome.SUCCEEDED
    assert result.text is not None and "bastard" in result.text
    assert result.screening == [
        ScreeningFinding(rule="toxicity", kind="words", verdict=Verdict.FLAG, field="prompt", count=1)
    ]


FROM_GATEWAY = [
    ScreeningFinding(rule="toxicity", kind="words", verdict=Verdict.FLAG, field="prompt", count=9),
    ScreeningFinding(rule="codename", kind="regex", verdict=Verdict.FLAG, field="prompt", count=1),
]


@pytest.mark.parametrize("filtered", [True, False])
async def test_a_result_has_the_findings_of_gateway_and_worker_each_once(screen: Screen, filtered: bool) -> None:
    header = ("screening", write_findings(FROM_GATEWAY))
    body = {"prompt": "Who is the bastard?", "callback_url": HOOK}
    async with working(screen=screen if filtered else None) as worker:
        result = await worker.result(record(body, header))

    found = [(one.rule, one.count) for one in result.screening or ()]
    assert found == [("toxicity", 1 if filtered else 9), ("codename", 1)]


async def test_a_rejected_job_ends_with_its_own_code_and_echoes_no_input(screen: Screen) -> None:
    async with working(screen=screen) as worker:
        output, letter = await worker.outputs(
            record(prompt="the secret falcon", custom_id="row-1", metadata={"a": "b"})
        )

    result = read_result(output.value)
    assert (result.outcome, result.custom_id, result.text, result.metadata) == (Outcome.REJECTED, "row-1", None, {})
    assert result.error is not None and result.error.code == "screened"
    assert result.error.message == "prompt: the rule project of the input filter rejects it"
    assert [(found.rule, found.verdict) for found in result.screening or ()] == [("project", Verdict.REJECT)]
    assert headers_of(output)["callback-url"] == HOOK
    assert "secret" not in (output.value or b"").decode()
    assert letter.topic == TOPICS.dead_letters
    assert headers_of(letter)["reason"] == "screened"
    assert worker.sample("postback_screened_total", verdict="reject") == 1
    assert worker.sample("postback_jobs_total", outcome="rejected") == 1


async def test_a_search_is_redacted_before_it_leaves(screen: Screen) -> None:
    """The unknown provider's error would come with the search, so the rejection shows that the filter came first."""
    async with working(screen=screen) as worker:
        sources = {"search": {"provider": "none", "query": "falcon"}}
        output, _ = await worker.outputs(record(prompt="hello", sources=sources))

    error = read_result(output.value).error
    assert error is not None
    assert error.message == "sources.search.query: the rule project of the input filter rejects it"


async def test_a_job_without_a_match_has_no_findings(screen: Screen) -> None:
    async with working(screen=screen) as worker:
        [output] = await worker.outputs(record())

    assert b"screening" not in (output.value or b"")
    assert worker.sample("postback_screened_total", verdict="pass") == 1


async def test_a_job_for_another_engine_is_forwarded_unread(screen: Screen) -> None:
    """The other engine's worker screens the job by its own rules, since each worker's operator may have other rules."""
    async with working({"other": "other"}, screen=screen) as worker:
        [output] = await worker.outputs(record(model_id="other", prompt="falcon"))

    assert output.topic == TOPICS.requests("other")
    assert worker.sample("postback_screened_total", verdict="reject") == 0


@pytest.fixture
def reading(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until this event is set, the filter goes on reading each job."""
    check, may_end = screen.check, threading.Event()

    def checked(tenant: str, job: Job) -> Screened:
        may_end.wait()
        return check(tenant, job)

    monkeypatch.setattr(screen, "check", checked)
    yield may_end
    may_end.set()


LONG = "lorem ipsum" * LONG_JOB_BYTES


@pytest.mark.parametrize("before", [0, 2], ids=["read", "waiting"])
async def test_a_job_that_expires_in_the_filter_ends_at_its_deadline_without_its_metadata(
    screen: Screen, reading: threading.Event, before: int
) -> None:
    """The filter has two threads. If `before` is 2, both are taken, and the job waits for a thread."""
    async with working(screen=screen) as worker, asyncio.timeout(120):
        others = [asyncio.ensure_future(worker.result(record(prompt=LONG))) for _ in range(before)]
        await asyncio.sleep(0)  # lets the other jobs reach the filter first
        result = await worker.result(record(prompt=LONG, metadata={"card": CARD}, custom_id="row-1", ttl_seconds=0.3))
        reading.set()
        ended = await asyncio.gather(*others, worker.result(record(prompt=LONG)))

    assert (result.outcome, result.error and result.error.code) == (Outcome.EXPIRED, "expired")
    assert (result.custom_id, result.metadata) == ("row-1", {})
    assert {other.outcome for other in ended} == {Outcome.SUCCEEDED}


async def test_a_job_that_is_cancelled_in_the_filter_ends_at_once(screen: Screen, reading: threading.Event) -> None:
    async with working(screen=screen) as worker, asyncio.timeout(120):
        running = asyncio.ensure_future(worker.result(record(prompt=LONG, job_id="job_1", metadata={"card": CARD})))
        await asyncio.sleep(0)
        said = JobControl(tenant="default", job_id="job_1", state=ControlState.CANCELLED, at=unix_ms(CLOCK))
        worker.handler.cancellations.apply(job_key_bytes(said.key), write_control(said))
        result = await running

    assert (result.outcome, result.metadata) == (Outcome.CANCELLED, {})


async def test_a_tenants_long_jobs_leave_the_threads_to_other_tenants_in_turn(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, tenants, may_end = screen.check, list[str](), threading.Semaphore(0)

    def checked(tenant: str, job: Job) -> Screened:
        tenants.append(tenant)
        may_end.acquire()
        return check(tenant, job)

    monkeypatch.setattr(screen, "check", checked)
    jobs = [record(None, (TENANT, name), prompt="lorem ipsum" * LONG_JOB_BYTES) for name in [*[b"flood"] * 6, b"other"]]
    async with working(screen=screen) as worker, asyncio.timeout(120):
        ending = asyncio.gather(*map(worker.result, jobs))
        while len(tenants) < 2:
            await asyncio.sleep(0.001)
        for _ in jobs:
            may_end.release()
        await ending
    assert sorted(tenants) == ["flood"] * 6 + ["other"]
    assert tenants.index("other") <= 3
