"""Behaviour that all search providers share: invalid answers, waits, redirects and the pace."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from telemetry.hand_clock import HandClock
from tests.integration.search.asking import LINK, NAMES, SECTIONS, failure, found
from tests.integration.search_services import (
    CLOCK,
    Reply,
    answering,
    brave,
    configured,
    esearch,
    in_json,
    page_of_html,
    searxng,
)
from workers.enrichment.evidence import Unreadable
from workers.enrichment.search.base import SearchQuery
from workers.enrichment.search.pace import RequestPace
from workers.enrichment.search.providers import providers
from workers.enrichment.search.service import Web
from workers.enrichment.search.settings import SearchSettings
from workers.enrichment.settings import EnrichmentSettings


@pytest.mark.parametrize("name", NAMES)
async def test_a_page_of_html_with_status_200_is_no_result(name: str) -> None:
    assert "is not JSON" in (why := await failure(name, page_of_html())) or "XML" in why or "Atom" in why


@pytest.mark.parametrize("name", NAMES)
async def test_a_status_is_reported(name: str) -> None:
    assert await failure(name, page_of_html(500)) in (
        "the search service answered 500",
        "the search service's answer is not XML that can be read",
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reply", [in_json([1, 2]), in_json({"results": 7, "esearchresult": 7, "query": 7, "web": 7})])
async def test_json_in_another_form_is_no_result(name: str, reply: Reply) -> None:
    assert "another form" in (why := await failure(name, reply)) or "XML" in why


@pytest.mark.parametrize("name", NAMES)
async def test_an_overloaded_service_that_asks_for_a_long_wait_is_left_alone_by_the_next_jobs(name: str) -> None:
    async with (
        answering(Reply(b"", "text/plain", 429, {"Retry-After": "120"})) as service,
        configured(name, service.url, **SECTIONS.get(name, {})) as provider,
    ):
        with pytest.raises(Unreadable, match="asks to wait 120 s"):
            await provider.search(SearchQuery("x", 5))
        with pytest.raises(Unreadable, match="s without requests"):
            await provider.search(SearchQuery("x", 5))
        assert len(service.asked) == 1


async def test_a_short_wait_is_kept_and_then_the_service_is_asked_once_more() -> None:
    busy = Reply(b"", "text/plain", 503, {"Retry-After": "0"})
    assert [one.title for one in await found("searxng", busy, searxng(LINK))] == ["One"]
    assert await failure("searxng", busy) == "the search service is overloaded"


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2015 07:28:00 GMT", "-5", "nan"])
async def test_a_retry_after_that_is_in_the_past_or_invalid_is_a_short_wait(value: str) -> None:
    busy = Reply(b"", "text/plain", 429, {"Retry-After": value})
    assert len(await found("searxng", busy, searxng(LINK))) == 1


async def test_a_redirect_is_not_followed_since_a_key_would_travel_on() -> None:
    async with answering(brave(LINK)) as other:
        away = Reply(b"", "text/html", 302, {"Location": other.url})
        assert await failure("brave", away) == "the search service answered 302"
        assert other.asked == []


async def test_an_endless_answer_is_given_up_once_it_is_too_large() -> None:
    assert "too large" in await failure("searxng", Reply(b" " * (9 * 1024 * 1024)))


async def test_a_service_that_is_not_there_is_a_reason() -> None:
    async with answering(searxng()) as service:
        gone = service.url
    async with configured("searxng", gone) as provider:
        with pytest.raises(Unreadable, match="could not be reached"):
            await provider.search(SearchQuery("x", 1))


async def test_requests_keep_the_pace_in_the_order_in_which_they_came() -> None:
    pace = RequestPace(CLOCK, 0.05)
    turns: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await pace.turn()
        turns.append((number, CLOCK.monotonic()))

    waiting = [asyncio.create_task(one(number)) for number in range(4)]
    await asyncio.sleep(0)
    waiting[1].cancel()  # request 2 gets the place of request 1
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [number for number, _ in turns] == [0, 2, 3]
    assert all(later - earlier >= 0.05 for (_, earlier), (_, later) in pairwise(turns))


async def test_requests_to_services_name_a_contact() -> None:
    asks = EnrichmentSettings(contact="ops@example.com")
    async with answering(esearch()) as service:
        web = Web(asks.named, CLOCK, asks.email)
        await web.start()
        found = providers(SearchSettings.model_validate({"pubmed": {"base_url": service.url}}), web, [])
        assert await found["pubmed"].search(SearchQuery("aspirin[ti]", 1)) == []
        await web.close()
        assert service.queries[0]["email"] == "ops@example.com"
        assert service.asked[0].headers["User-Agent"] == "Postback/0.1 (ops@example.com)"


@pytest.mark.parametrize(
    "document",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>',
        b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><x>&f;</x>',
        b"<PubmedArticleSet><PubmedArticle>",
        b'<?xml version="1.0" encoding="nonsense"?><x/>',
    ],
)
@pytest.mark.parametrize("name", ["pubmed", "arxiv"])
async def test_xml_with_entities_or_without_end_is_not_read(name: str, document: bytes) -> None:
    reply = Reply(document, "text/xml")
    assert "not XML that can be read" in await failure(name, *([esearch("1")] if name == "pubmed" else []), reply)


async def test_a_service_is_asked_again_after_an_hour_at_most() -> None:
    clock = HandClock()
    pace = RequestPace(clock, 0.001)
    pace.rest(30 * 24 * 3600)
    with pytest.raises(Unreadable, match="3600 s without requests"):
        await pace.turn()
    clock.sleep(3600)
    await pace.turn()
