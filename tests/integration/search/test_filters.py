"""Filters of a search: domains, a range of days, a language; and the age of cached results."""

from __future__ import annotations

import asyncio

import pytest

from schemas.job import Search, Sources
from tests.integration.profiled_worker import working
from tests.integration.search.asking import SECTIONS
from tests.integration.search_services import (
    CLOCK,
    Reply,
    answering,
    atom,
    brave,
    configured,
    esearch,
    searxng,
    wikipedia,
)
from workers.enrichment.bounds import Bounds
from workers.enrichment.search.base import SearchQuery
from workers.enrichment.search.searches import Searches
from workers.enrichment.settings import EnrichmentSettings

SINCE, UNTIL = "2024-01-02", "2024-12-31"
LINKS = [{"url": f"https://{host}/1", "title": host} for host in ("who.int", "apps.who.int", "notwho.int", "a.example")]


@pytest.mark.parametrize(
    ("name", "reply", "query", "sent"),
    [
        (
            "arxiv",
            atom(),
            SearchQuery("bridge", 5, since=SINCE, until=UNTIL),
            {"search_query": "(all:bridge) AND submittedDate:[202401020000 TO 202412312359]"},
        ),
        (
            "arxiv",
            atom(),
            SearchQuery("bridge", 5, since=SINCE),
            {"search_query": "(all:bridge) AND submittedDate:[202401020000 TO 299912312359]"},
        ),
        (
            "pubmed",
            esearch(),
            SearchQuery("bridge[ti]", 5, since=SINCE, until=UNTIL),
            {"datetype": "pdat", "mindate": "2024/01/02", "maxdate": "2024/12/31"},
        ),
        (
            "brave",
            brave(),
            SearchQuery("bridge", 5, domains=("who.int", "cdc.gov"), language="de", since=SINCE, until=UNTIL),
            {
                "q": "bridge (site:who.int OR site:cdc.gov)",
                "freshness": "2024-01-02to2024-12-31",
                "search_lang": "de",
            },
        ),
        ("searxng", searxng(), SearchQuery("bridge", 5, language="de"), {"language": "de"}),
    ],
)
async def test_a_service_is_asked_by_its_own_filters(
    name: str, reply: Reply, query: SearchQuery, sent: dict[str, str]
) -> None:
    async with (
        answering(reply) as service,
        configured(name, service.url, **SECTIONS.get(name, {})) as provider,
    ):
        assert await provider.search(query) == []
        assert service.queries[0].items() >= sent.items()


async def test_as_many_domains_are_sent_to_brave_as_fit_into_its_query() -> None:
    domains = tuple(f"host-number-{number}.example" for number in range(20))
    async with answering(brave()) as service, configured("brave", service.url, **SECTIONS["brave"]) as provider:
        await provider.search(SearchQuery("bridge " * 60, 5, domains=domains))
        sent = service.queries[0]["q"]
    assert len(sent) <= 400
    assert len(sent.split()) <= 50
    assert 3 <= sent.count("site:") < 20


async def test_only_results_on_the_domains_and_below_them_are_taken() -> None:
    async with answering(searxng(*LINKS)) as service, configured("searxng", service.url) as provider:
        searches = Searches({"searxng": provider}, 30.0, 600.0, CLOCK)
        wanted = Search(provider="searxng", query="x", domains=["who.int"])
        assert [one.title for one in (await searches.find(wanted, "a")).found] == ["who.int", "apps.who.int"]


async def test_a_filter_that_the_provider_lacks_is_a_note() -> None:
    async with answering(wikipedia()) as service, working(wikipedia=service.url) as worker:
        search = {"provider": "wikipedia", "query": "x", "language": "de", "since": SINCE, "until": UNTIL}
        result = await worker.result({"search": search})
    said = [note for note in result.notes if "the search ran without it" in note]
    assert said == [
        f"the search at wikipedia has no {name}: the search ran without it" for name in ("since", "until", "language")
    ]


async def test_a_search_is_repeated_if_its_cached_results_are_older_than_the_job_allows() -> None:
    async with answering(searxng(*LINKS)) as service, configured("searxng", service.url) as provider:
        searches = Searches({"searxng": provider}, 30.0, 600.0, CLOCK)
        wanted = Search(provider="searxng", query="x")
        await searches.find(wanted, "a")
        await asyncio.sleep(0.02)
        await searches.find(wanted, "a", max_age_seconds=60.0)
        assert len(service.asked) == 1
        await searches.find(wanted, "a", max_age_seconds=0.001)
        assert len(service.asked) == 2


async def test_several_searches_run_beside_each_other_and_a_result_of_two_is_one_source() -> None:
    here = {"url": "http://127.0.0.1:9/a", "title": "x"}
    async with (
        answering(searxng(here)) as one,
        answering(brave(here, {**here, "url": "http://127.0.0.1:9/b"})) as other,
        answering(wikipedia()) as third,
        configured("brave", other.url, **SECTIONS["brave"]) as provider,
        working(searxng=one.url, wikipedia=third.url, others={"brave": provider}) as worker,
    ):
        searches = [{"provider": name, "query": "x"} for name in ("brave", "wikipedia", "nosuch")]
        result = await worker.result({"search": {"provider": "searxng", "query": "x"}, "searches": searches})
    assert (len(one.asked), len(other.asked), len(third.asked)) == (1, 1, 1)
    assert sum("was left out" in note for note in result.notes) == 2
    assert "the search at wikipedia found nothing" in result.notes
    assert any(note.startswith("the search at nosuch brought nothing") for note in result.notes)


@pytest.mark.parametrize(
    ("sources", "expected", "notes"),
    [
        (Sources(), (5.0, 4000, float("inf")), 0),
        (Sources(budget_seconds=1.5, max_chars=300, freshness_seconds=120), (1.5, 300, 120.0), 0),
        (Sources(budget_seconds=120, max_chars=10**6, freshness_seconds=0), (30.0, 16_000, 60.0), 3),
    ],
)
def test_a_job_sets_limits_within_the_operators_bounds(
    sources: Sources, expected: tuple[float, int, float], notes: int
) -> None:
    bounds = Bounds.of(sources, EnrichmentSettings())
    assert (bounds.budget_seconds, bounds.chars, bounds.max_age_seconds) == expected
    assert len(bounds.notes) == notes
    assert all("the operator's bound" in note for note in bounds.notes)
