"""Many simultaneous searches queue up at the service's pace; only a slow service uses up their budgets."""

from __future__ import annotations

import asyncio

from scripts.play.site import Site
from telemetry.hand_clock import HandClock
from tests.integration.profiled_worker import working
from tests.integration.search_services import (
    Reply,
    answering,
    atom,
    configured,
    efetch,
    esearch,
    paper,
    pubmed_article,
    pubmed_at_its_pace,
)
from tests.virtual_time import in_jumping_time, jump
from workers.enrichment.search.base import ReadsById
from workers.enrichment.search.pubmed import MAX_ARTICLES

MANY = 100
FOREVER = 30.0
RARELY = 0.005
"""Requests per second, so few that a second request gets no turn within a test."""
PATIENCE_SECONDS = 60
"""Timeout of a test whose jobs have a budget of a second: enough on any machine."""


def about(number: int) -> str:
    return f"Does aspirin lower the risk of stroke number {number}?"


async def test_a_hundred_medical_questions_at_once_all_get_their_sources() -> None:
    async with pubmed_at_its_pace(24) as service, working(pubmed=service.url, per_second=20) as worker:
        results = await asyncio.gather(*(worker.result({"profile": "medical"}, about(one)) for one in range(MANY)))
        assert [result.sources for result in results] == [[f"pmid:{number}"] for number in range(MANY)]
        assert {result.outcome for result in results} == {"succeeded"}
        assert service.answered.count("/esearch.fcgi") == MANY + MANY // 2


async def test_articles_that_wait_for_a_turn_share_one_request() -> None:
    async with pubmed_at_its_pace(100) as service, configured("pubmed", service.url, per_second=20) as provider:
        assert isinstance(provider, ReadsById)
        found = await asyncio.gather(*(provider.by_id([f"pmid:{one}"]) for one in range(1 + MAX_ARTICLES)))
        assert [[each.id for each in one] for one in found] == [[f"pmid:{one}"] for one in range(1 + MAX_ARTICLES)]
        assert service.answered == ["/efetch.fcgi", "/efetch.fcgi"]  # the first had its turn at once


async def test_a_service_that_is_slow_costs_each_job_its_budget_and_no_more() -> None:
    async with pubmed_at_its_pace(100, FOREVER) as service, working(pubmed=service.url, budget=1.0) as worker:
        async with asyncio.timeout(PATIENCE_SECONDS):
            results = await asyncio.gather(*(worker.result({"profile": "medical"}, about(one)) for one in range(10)))
        assert {result.outcome for result in results} == {"failed"}
        assert all("it was late" in result.error.message for result in results if result.error)
        assert worker.searches("late") == 10


async def test_a_job_that_waits_in_line_until_its_deadline_ends_as_expired() -> None:
    async with pubmed_at_its_pace(100) as service, working(pubmed=service.url, per_second=RARELY) as worker:
        first = asyncio.create_task(worker.result({"profile": "medical"}, about(2)))
        second = await worker.result({"profile": "medical"}, about(4), ttl_seconds=0.5)
        assert second.outcome == "expired"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_job_that_is_cancelled_in_line_ends_at_once_and_leaves_its_place() -> None:
    async with pubmed_at_its_pace(100) as service, working(pubmed=service.url, per_second=RARELY) as worker:
        jobs = [
            asyncio.create_task(worker.result({"profile": "medical"}, about(one), job_id=str(one))) for one in (2, 4)
        ]
        while not service.answered:
            await asyncio.sleep(0.01)
        worker.cancel("2", "4")
        async with asyncio.timeout(PATIENCE_SECONDS):
            results = await asyncio.gather(*jobs)
        assert {result.outcome for result in results} == {"cancelled"}
        assert service.answered == ["/esearch.fcgi"]


@in_jumping_time
async def test_a_job_reads_its_own_pages_while_its_search_waits_in_line() -> None:
    """The search waits longer than the job's budget, yet choosing passages gets its share of time."""
    clock, papers = HandClock(), atom(paper("2305.12345v1", "Aspirin", "Aspirin lowered the risk of stroke."))
    search = {"provider": "arxiv", "query": "aspirin"}
    async with (
        Site() as site,
        answering(papers) as service,
        working(arxiv=service.url, per_second=RARELY, budget=120.0, clock=clock) as worker,
    ):
        await worker.result({"search": {**search, "query": "stroke"}})
        job = asyncio.create_task(
            worker.result({"urls": [site.url("/mine")], "search": search}, "When did the mine of Corrow close?")
        )
        await worker.read(2)
        assert len(service.asked) == 1
        jump(clock, 1 / RARELY)
        result = await job
        # The echoed prompt repeats a sentence of each source.
        assert [details.id for details in result.source_details] == [site.url("/mine"), "arxiv:2305.12345"]
        assert worker.searches("found") == 2
        assert not any("late" in note or "too long" in note for note in result.notes)


async def test_the_same_question_of_many_jobs_is_one_search_and_is_remembered() -> None:
    async with pubmed_at_its_pace(100) as service, working(pubmed=service.url) as worker:
        results = await asyncio.gather(*(worker.result({"profile": "medical"}, about(2)) for _ in range(20)))
        results.append(await worker.result({"profile": "medical"}, about(2)))
        assert [result.sources for result in results] == [["pmid:2"]] * 21
        assert service.answered == ["/esearch.fcgi", "/efetch.fcgi"]


async def test_results_of_a_search_expire_and_failures_are_not_cached() -> None:
    article = efetch(pubmed_article("1", "T", "<AbstractText>Aspirin lowers the risk of stroke.</AbstractText>"))
    fault = Reply(b"{}", status=500)
    replies = [fault, esearch("1"), article, esearch("1"), article]
    async with answering(*replies) as service, working(pubmed=service.url, fresh=0.0) as worker:
        results = [await worker.result({"profile": "medical"}) for _ in range(3)]
        assert [result.outcome for result in results] == ["failed", "succeeded", "succeeded"]
        assert len(service.asked) == 5
