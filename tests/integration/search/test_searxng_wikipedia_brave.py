"""SearXNG, Wikipedia and Brave in their real formats, including quirks and errors."""

from __future__ import annotations

import pytest

from tests.integration.search.asking import LINK, failure, found
from tests.integration.search_services import (
    answering,
    brave,
    brave_error,
    configured,
    page_of_html,
    searxng,
    wiki_error,
    wiki_page,
    wikipedia,
)
from workers.enrichment.evidence import Found
from workers.enrichment.search.base import SearchQuery


async def test_searxng_gives_each_usable_link_once() -> None:
    results = [
        LINK, {"url": "magnet:?xt=urn:btih:1", "title": "Torrent"}, {"title": "No URL"}, {"url": "https://u:p@b.example/"},
        {**LINK, "title": "Again"}, {"url": "http://b.example/2", "title": ""}, {"url": "https://c.example/"},
    ]  # fmt: skip
    assert await found("searxng", searxng(*results), limit=2) == [
        Found("https://a.example/1", title="One"),
        Found("http://b.example/2"),
    ]


async def test_searxng_is_asked_for_json_below_the_path_of_the_instance() -> None:
    async with answering(searxng(LINK)) as service, configured("searxng", f"{service.url}/instance/") as provider:
        await provider.search(SearchQuery("halvorsen & bridge", 5))
        (asked,) = service.asked
        assert asked.path == "/instance/search"
        assert dict(asked.query) == {"q": "halvorsen & bridge", "format": "json"}


async def test_searxng_without_its_json_format_tells_the_operator_what_to_change() -> None:
    assert "`json` is missing in its search.formats" in await failure("searxng", page_of_html(403))


async def test_a_searxng_without_an_answering_engine_has_failed_instead_of_finding_nothing() -> None:
    assert "none of" in await failure("searxng", searxng(unresponsive=[["google", "Suspended: CAPTCHA"]]))
    assert await found("searxng", searxng()) == []


async def test_wikipedia_gives_articles_in_the_order_of_relevance_without_disambiguations() -> None:
    reply = wikipedia(
        wiki_page(11, 3, "Bridge (music)"),
        wiki_page(12, 2, "Bridge", disambiguation=""),
        wiki_page(90, 1, "Halvorsen bridge"),
    )
    assert await found("wikipedia", reply, limit=2) == [
        Found("https://en.wikipedia.org/wiki/Halvorsen_bridge", title="Halvorsen bridge"),
        Found("https://en.wikipedia.org/wiki/Bridge_(music)", title="Bridge (music)"),
    ]


async def test_a_search_of_wikipedia_that_finds_nothing_has_no_results() -> None:
    assert await found("wikipedia", wikipedia()) == []


async def test_wikipedia_that_lags_says_so_with_status_200_and_is_left_alone() -> None:
    lag = wiki_error("maxlag", "Waiting for 10.64.16.7: 7.3 seconds lagged.", Retry_After="5", X_Database_Lag="7")
    assert await failure("wikipedia", lag) == "the search service is overloaded and asks to wait 5 s"


async def test_wikipedia_takes_no_query_of_more_than_300_characters() -> None:
    async with answering(wikipedia()) as service, configured("wikipedia", service.url) as provider:
        await provider.search(SearchQuery("Halvorsen " * 60, 5))
        (query,) = service.queries
        assert len(query["gsrsearch"]) == 299
        assert (query["maxlag"], query["gsrlimit"]) == ("5", "8")
        # Wikimedia answers 403 to a client without such a name.
        assert "Postback" in service.asked[0].headers["User-Agent"]
    assert "refuses the query" in await failure("wikipedia", wiki_error("cirrussearch-query-too-long", "halvorsen"))


async def test_brave_gives_links_and_gets_its_key_in_a_header() -> None:
    async with (
        answering(brave(LINK, {"url": "https://b.example/", "title": "Two", "description": "…"})) as service,
        configured("brave", service.url, api_key="brave-key") as provider,
    ):
        assert [one.url for one in await provider.search(SearchQuery("word " * 80, 2))] == [
            "https://a.example/1",
            "https://b.example/",
        ]
        (asked,) = service.asked
        assert asked.headers["X-Subscription-Token"] == "brave-key"
        assert dict(asked.query) == {"q": " ".join(["word"] * 50), "count": "2"}


async def test_brave_that_finds_nothing_has_no_web_part() -> None:
    assert await found("brave", brave()) == []


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (422, "SUBSCRIPTION_TOKEN_INVALID", "refuses the operator's key"),
        (401, "SUBSCRIPTION_TOKEN_MISSING", "refuses the operator's key"),
        (422, "VALIDATION", "refuses the query"),
        (404, "NOT_FOUND", "answered 404"),
    ],
)
async def test_brave_states_the_reason_of_a_refusal_in_the_body(status: int, code: str, why: str) -> None:
    assert why in await failure("brave", brave_error(status, code))


async def test_brave_tells_when_a_window_ends_in_its_own_headers() -> None:
    month = {"X_RateLimit_Remaining": "0, 0", "X_RateLimit_Reset": "1, 1419704"}
    assert "asks to wait 1419704 s" in await failure("brave", brave_error(429, "RATE_LIMITED", **month))
    second = {"X_RateLimit_Remaining": "0, 900", "X_RateLimit_Reset": "1, 1419704"}
    assert len(await found("brave", brave_error(429, "RATE_LIMITED", **second), brave(LINK))) == 1


async def test_brave_without_a_limit_for_the_month_is_not_left_alone_for_a_month() -> None:
    """Without a monthly limit, the second window says 0 of 0, so the reset time of that window does not matter."""
    plan = {"X_RateLimit_Limit": "50, 0", "X_RateLimit_Policy": "50;w=1, 0;w=2592000"}
    second = brave_error(429, "RATE_LIMITED", **plan, X_RateLimit_Remaining="0, 0", X_RateLimit_Reset="1, 1419704")
    assert len(await found("brave", second, brave(LINK))) == 1
    neither = brave_error(429, "RATE_LIMITED", **plan, X_RateLimit_Remaining="7, 0", X_RateLimit_Reset="1, 1419704")
    assert len(await found("brave", neither, brave(LINK))) == 1


@pytest.mark.parametrize("odd", ["", "x, 0", "0", "-1, 0", "1, 1419704"])
async def test_brave_with_unusable_rate_headers_is_left_alone_for_a_moment(odd: str) -> None:
    reply = brave_error(429, "RATE_LIMITED", X_RateLimit_Limit=odd, X_RateLimit_Remaining=odd, X_RateLimit_Reset="1, z")
    assert len(await found("brave", reply, brave(LINK))) == 1
