"""Each search provider against a loopback server that speaks its service's format, quirks and errors included."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.clocks import HandClock
from tests.integration.search_services import (
    ATOM_ERROR,
    CLOCK,
    Reply,
    answering,
    atom,
    brave,
    brave_error,
    configured,
    efetch,
    esearch,
    in_json,
    page_of_html,
    paper,
    pubmed_article,
    searxng,
    wiki_error,
    wiki_page,
    wikipedia,
)
from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.base import SearchProvider
from workers.enrichment.search.pace import RequestPace
from workers.enrichment.search.providers import SearchMisconfigured, providers
from workers.enrichment.search.service import Web
from workers.enrichment.search.settings import SearchSettings
from workers.enrichment.settings import EnrichmentSettings

LINK = {"url": "https://a.example/1", "title": "One"}
SECTIONS: dict[str, dict[str, Any]] = {"brave": {"api_key": "brave-key"}, "pubmed": {"api_key": "ncbi-key"}}
STRUCTURED = """<AbstractText Label="BACKGROUND">Why.</AbstractText>
<AbstractText Label="RESULTS" NlmCategory="RESULTS">So.</AbstractText><CopyrightInformation>X</CopyrightInformation>"""
NAMES = ["searxng", "wikipedia", "pubmed", "arxiv", "brave"]


async def found(name: str, *replies: Reply, limit: int = 5) -> list[Found]:
    async with answering(*replies) as service, configured(name, service.url, **SECTIONS.get(name, {})) as provider:
        return await provider.search("halvorsen bridge", limit)


async def failure(name: str, *replies: Reply) -> str:
    """Why a search failed. The text tells neither the query nor a key nor where the service is."""
    with pytest.raises(Unreadable) as caught:
        await found(name, *replies)
    text = str(caught.value)
    assert not any(secret in text for secret in ("halvorsen", "key=", "brave-key", "ncbi-key", "127.0.0.1"))
    return text


# -- what all have in common --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_a_page_of_html_with_status_200_is_no_result(name: str) -> None:
    assert "is not JSON" in (why := await failure(name, page_of_html())) or "XML" in why or "Atom" in why


@pytest.mark.parametrize("name", NAMES)
async def test_a_status_is_told(name: str) -> None:
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
            await provider.search("x", 5)
        with pytest.raises(Unreadable, match="s without requests"):
            await provider.search("x", 5)
        assert len(service.asked) == 1


async def test_a_short_wait_is_kept_and_then_the_service_is_asked_once_more() -> None:
    busy = Reply(b"", "text/plain", 503, {"Retry-After": "0"})
    assert [one.title for one in await found("searxng", busy, searxng(LINK))] == ["One"]
    assert await failure("searxng", busy) == "the search service is overloaded"


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2015 07:28:00 GMT", "-5", "nan"])
async def test_a_retry_after_that_is_past_or_nonsense_is_a_short_wait(value: str) -> None:
    busy = Reply(b"", "text/plain", 429, {"Retry-After": value})
    assert len(await found("searxng", busy, searxng(LINK))) == 1


async def test_a_redirect_is_not_followed_since_a_key_would_travel_on() -> None:
    async with answering(brave(LINK)) as other:
        away = Reply(b"", "text/html", 302, {"Location": other.url})
        assert await failure("brave", away) == "the search service answered 302"
        assert other.asked == []


async def test_an_answer_without_end_is_left_where_it_gets_too_large() -> None:
    assert "too large" in await failure("searxng", Reply(b" " * (9 * 1024 * 1024)))


async def test_a_service_that_is_not_there_is_a_reason() -> None:
    async with answering(searxng()) as service:
        gone = service.url
    async with configured("searxng", gone) as provider:
        with pytest.raises(Unreadable, match="could not be reached"):
            await provider.search("x", 1)


async def test_requests_keep_the_pace_in_the_order_in_which_they_came() -> None:
    pace = RequestPace(CLOCK, 0.05)
    turns: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        await pace.turn()
        turns.append((number, CLOCK.monotonic()))

    waiting = [asyncio.create_task(one(number)) for number in range(4)]
    await asyncio.sleep(0)
    waiting[1].cancel()  # its place is free for the next
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [number for number, _ in turns] == [0, 2, 3]
    assert all(later - earlier >= 0.05 for (_, earlier), (_, later) in pairwise(turns))


# -- SearXNG --------------------------------------------------------------------


async def test_searxng_gives_links_without_what_is_none_and_each_once() -> None:
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
        await provider.search("halvorsen & bridge", 5)
        (asked,) = service.asked
        assert asked.path == "/instance/search"
        assert dict(asked.query) == {"q": "halvorsen & bridge", "format": "json"}


async def test_searxng_without_its_json_format_tells_the_operator_what_to_change() -> None:
    assert "`json` is missing in its search.formats" in await failure("searxng", page_of_html(403))


async def test_searxng_of_which_no_engine_answered_has_failed_and_not_found_nothing() -> None:
    assert "none of" in await failure("searxng", searxng(unresponsive=[["google", "Suspended: CAPTCHA"]]))
    assert await found("searxng", searxng()) == []


# -- Wikipedia --------------------------------------------------------------------


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


async def test_wikipedia_that_finds_nothing_says_nothing() -> None:
    assert await found("wikipedia", wikipedia()) == []


async def test_wikipedia_that_lags_says_so_with_status_200_and_is_left_alone() -> None:
    lag = wiki_error("maxlag", "Waiting for 10.64.16.7: 7.3 seconds lagged.", Retry_After="5", X_Database_Lag="7")
    assert await failure("wikipedia", lag) == "the search service is overloaded and asks to wait 5 s"


async def test_wikipedia_takes_no_query_of_more_than_300_characters() -> None:
    async with answering(wikipedia()) as service, configured("wikipedia", service.url) as provider:
        await provider.search("Halvorsen " * 60, 5)
        (query,) = service.queries
        assert len(query["gsrsearch"]) == 299
        assert (query["maxlag"], query["gsrlimit"]) == ("5", "8")
        assert "Postback" in service.asked[0].headers["User-Agent"]  # without one, Wikimedia answers 403
    assert "refuses the query" in await failure("wikipedia", wiki_error("cirrussearch-query-too-long", "halvorsen"))


# -- PubMed --------------------------------------------------------------------


async def test_pubmed_gives_abstracts_by_pmid_in_the_order_of_relevance() -> None:
    articles = [
        pubmed_article("111", "On <i>bridges</i>.", "<AbstractText>CO<sub>2</sub> falls by 12&#37;.</AbstractText>"),
        pubmed_article("222", "Trial", STRUCTURED),
    ]  # fmt: skip
    assert await found("pubmed", esearch("222", "111"), efetch(*articles)) == [
        Found(
            "https://pubmed.ncbi.nlm.nih.gov/222/", "pmid:222", "Trial", "BACKGROUND: Why.\n\nRESULTS: So.",
            Particulars("2019-03-05", doi="10.1000/test.222"),
        ),
        Found(
            "https://pubmed.ncbi.nlm.nih.gov/111/", "pmid:111", "On bridges", "CO2 falls by 12%.",
            Particulars("2019-03-05", doi="10.1000/test.111"),
        ),
    ]  # fmt: skip


async def test_pubmed_articles_without_an_abstract_or_retracted_are_no_sources() -> None:
    text = "<AbstractText>Text.</AbstractText>"
    articles = [
        pubmed_article("1", "No abstract", ""),
        pubmed_article("2", "Empty abstract", "<AbstractText/>"),
        pubmed_article("3", "Retracted", text, kind="D016441"),
        pubmed_article("4", "Good", text),
        "<DeleteCitation><PMID>5</PMID></DeleteCitation>",
    ]
    assert [one.id for one in await found("pubmed", esearch("1", "2", "3", "4"), efetch(*articles))] == ["pmid:4"]


@pytest.mark.parametrize(
    ("date", "published"),
    [
        ("<Year>2020</Year>", "2020"),
        ("<Year>2020</Year><Month>11</Month>", "2020-11"),
        ("<Year>2020</Year><Season>Fall</Season>", "2020"),
        ("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", "1998"),
        ("<MedlineDate>Winter</MedlineDate>", None),
    ],
)
async def test_pubmed_dates_are_kept_as_exact_as_they_are(date: str, published: str | None) -> None:
    article = pubmed_article("1", "T", "<AbstractText>Text.</AbstractText>")
    article = article.replace("<Year>2019</Year><Month>Mar</Month><Day>5</Day>", date)
    (one,) = await found("pubmed", esearch("1"), efetch(article))
    assert one.particulars.published == published


async def test_pubmed_books_are_found_too() -> None:
    book = """<PubmedBookArticle><BookDocument><PMID Version="1">77</PMID><Book><BookTitle>Drugs</BookTitle><PubDate>
    <Year>2024</Year></PubDate></Book><ArticleTitle>Aspirin</ArticleTitle><Abstract><AbstractText>A drug.</AbstractText>
    </Abstract></BookDocument></PubmedBookArticle>"""
    (one,) = await found("pubmed", esearch("77"), efetch(book))
    assert (one.id, one.title, one.text, one.particulars.published) == ("pmid:77", "Aspirin", "A drug.", "2024")


async def test_pubmed_is_told_who_asks_and_a_question_that_finds_nothing_is_asked_more_widely() -> None:
    async with (
        answering(esearch(), esearch()) as service,
        configured("pubmed", service.url, api_key="ncbi-key", email="me@example.com") as provider,
    ):
        assert await provider.search("Does aspirin help?", 3) == []
        strict, wide = service.queries
        assert [request.path for request in service.asked] == ["/esearch.fcgi"] * 2
        assert strict == {
            "db": "pubmed", "tool": "postback", "email": "me@example.com", "api_key": "ncbi-key", "retmax": "3",
            "retmode": "json", "sort": "relevance", "term": "(Does aspirin help?) AND hasabstract",
        }  # fmt: skip
        assert wide["term"] == "(aspirin OR help) AND hasabstract"


async def test_services_are_told_whom_to_write_to() -> None:
    asks = EnrichmentSettings(contact="ops@example.com")
    async with answering(esearch()) as service:
        web = Web(asks.named, CLOCK, asks.email)
        await web.start()
        found = providers(SearchSettings.model_validate({"pubmed": {"base_url": service.url}}), web, [])
        assert await found["pubmed"].search("aspirin[ti]", 1) == []
        await web.close()
        assert service.queries[0]["email"] == "ops@example.com"
        assert service.asked[0].headers["User-Agent"] == "Postback/0.1 (ops@example.com)"


async def test_pubmed_queries_in_its_own_language_are_not_widened() -> None:
    async with answering(esearch()) as service, configured("pubmed", service.url) as provider:
        assert await provider.search("aspirin[ti] AND 2020[dp]", 3) == []
        assert len(service.asked) == 1


async def test_pubmed_faults_have_status_200_and_strings_for_numbers_and_stray_control_characters() -> None:
    fault = in_json({"header": {}, "esearchresult": {"ERROR": "Search Backend failed: halvorsen"}})
    assert "a fault of its own" in await failure("pubmed", fault)
    fault = Reply(b"<eFetchResult><ERROR>Unable to obtain query #1</ERROR></eFetchResult>", "text/xml")
    assert "a fault of its own" in await failure("pubmed", esearch("1"), fault)
    stray = Reply(b'{"esearchresult": {"count": "0", "idlist": [], "querytranslation": "a\tb\x01"}}')
    assert await found("pubmed", stray) == []


async def test_pubmed_refuses_a_key_or_too_many_requests() -> None:
    wrong = in_json({"error": "API key invalid", "api-key": "ncbi-key", "type": "api", "status": "unknown"}, 400)
    assert await failure("pubmed", wrong) == "the search service refuses the operator's key"
    often = in_json({"error": "API rate limit exceeded", "api-key": "ncbi-key", "count": "11", "limit": "10"}, 429)
    assert await failure("pubmed", often) == "the search service is overloaded"


async def test_pubmed_is_asked_three_times_a_second_and_ten_times_with_a_key() -> None:
    for key, seconds in ((None, 1 / 3), ("k", 1 / 10)):
        async with (
            answering(esearch()) as service,
            configured("pubmed", service.url, api_key=key, per_second=None) as provider,
        ):
            began = CLOCK.monotonic()
            await provider.search("aspirin[ti]", 1)
            await provider.search("aspirin[ti]", 1)
            assert CLOCK.monotonic() - began >= seconds


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


# -- arXiv --------------------------------------------------------------------


async def test_arxiv_gives_abstracts_by_id_without_version() -> None:
    reply = atom(
        paper("2305.12345v2", "Bridges <of\n  Tarnby", "We measure\n bridges & rivers.", doi="10.1000/x.1"),
        paper("hep-th/9901001v1", "Old", "Strings."),
        paper("math.GT/0309136v1", "Older", "Knots."),
    )
    day = "2023-05-20"
    abstracts = "https://arxiv.org/abs/"
    assert await found("arxiv", reply) == [
        Found(
            f"{abstracts}2305.12345v2", "arxiv:2305.12345", "Bridges <of Tarnby", "We measure bridges & rivers.",
            Particulars(day, doi="10.1000/x.1"),
        ),
        Found(f"{abstracts}hep-th/9901001v1", "arxiv:hep-th/9901001", "Old", "Strings.", Particulars(day)),
        Found(f"{abstracts}math.GT/0309136v1", "arxiv:math.GT/0309136", "Older", "Knots.", Particulars(day)),
    ]  # fmt: skip


@pytest.mark.parametrize("status", [200, 400])
async def test_arxiv_errors_are_entries_whatever_the_status(status: int) -> None:
    reply = atom(ATOM_ERROR)
    assert "does not understand" in await failure("arxiv", Reply(reply.body, reply.media_type, status))


async def test_arxiv_answers_an_empty_page_now_and_then_although_there_are_results() -> None:
    assert "empty page" in await failure("arxiv", atom(total=30))
    assert await found("arxiv", atom(total=0)) == []


async def test_arxiv_papers_that_were_withdrawn_or_say_nothing_are_no_sources() -> None:
    entries = [
        paper("2305.00001v3", "Gone", "This paper has been withdrawn by the author due to an error."),
        paper("2305.00002v1", "Silent", ""),
        "<entry><title>Without an id</title><summary>x</summary></entry>",
        paper("2305.00003v1", "Here", "Withdrawn troops are what this paper counts? No: bridges."),
        paper("2305.00004v1", "Also here", "We count bridges from which troops were withdrawn."),
    ]
    assert [one.id for one in await found("arxiv", atom(*entries))] == ["arxiv:2305.00004"]


@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("What is a self-attention layer?", {"search_query": "all:self-attention OR all:layer"}),
        ("au:bengio AND ti:attention", {"search_query": "au:bengio AND ti:attention"}),
        ("arXiv:2305.12345v2", {"id_list": "2305.12345v2"}),
        ("hep-th/9901001", {"id_list": "hep-th/9901001"}),
        ('the "of" (and)', {"search_query": "all:the OR all:of OR all:and"}),
    ],
)
async def test_arxiv_is_asked_for_words_for_its_own_language_or_for_an_id(query: str, params: dict[str, str]) -> None:
    async with answering(atom()) as service, configured("arxiv", service.url) as provider:
        await provider.search(query, 4)
        assert service.queries == [{**params, "start": "0", "max_results": "4", "sortBy": "relevance"}]


# -- Brave --------------------------------------------------------------------


async def test_brave_gives_links_and_gets_its_key_in_a_header() -> None:
    async with (
        answering(brave(LINK, {"url": "https://b.example/", "title": "Two", "description": "…"})) as service,
        configured("brave", service.url, api_key="brave-key") as provider,
    ):
        assert [one.url for one in await provider.search("word " * 80, 2)] == [
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
async def test_brave_says_what_it_refuses_in_the_body(status: int, code: str, why: str) -> None:
    assert why in await failure("brave", brave_error(status, code))


async def test_brave_tells_when_a_window_ends_in_its_own_headers() -> None:
    month = {"X_RateLimit_Remaining": "0, 0", "X_RateLimit_Reset": "1, 1419704"}
    assert "asks to wait 1419704 s" in await failure("brave", brave_error(429, "RATE_LIMITED", **month))
    second = {"X_RateLimit_Remaining": "0, 900", "X_RateLimit_Reset": "1, 1419704"}
    assert len(await found("brave", brave_error(429, "RATE_LIMITED", **second), brave(LINK))) == 1


async def test_brave_without_a_limit_for_the_month_is_not_left_alone_for_a_month() -> None:
    """Such a plan's second window has no end that matters: 0 of 0 are left, which is no limit."""
    plan = {"X_RateLimit_Limit": "50, 0", "X_RateLimit_Policy": "50;w=1, 0;w=2592000"}
    second = brave_error(429, "RATE_LIMITED", **plan, X_RateLimit_Remaining="0, 0", X_RateLimit_Reset="1, 1419704")
    assert len(await found("brave", second, brave(LINK))) == 1
    neither = brave_error(429, "RATE_LIMITED", **plan, X_RateLimit_Remaining="7, 0", X_RateLimit_Reset="1, 1419704")
    assert len(await found("brave", neither, brave(LINK))) == 1


@pytest.mark.parametrize("odd", ["", "x, 0", "0", "-1, 0", "1, 1419704"])
async def test_brave_whose_numbers_make_no_sense_is_left_alone_for_a_moment(odd: str) -> None:
    reply = brave_error(429, "RATE_LIMITED", X_RateLimit_Limit=odd, X_RateLimit_Remaining=odd, X_RateLimit_Reset="1, z")
    assert len(await found("brave", reply, brave(LINK))) == 1


async def test_a_service_is_asked_again_after_an_hour_whatever_it_wished() -> None:
    clock = HandClock()
    pace = RequestPace(clock, 0.001)
    pace.rest(30 * 24 * 3600)
    with pytest.raises(Unreadable, match="3600 s without requests"):
        await pace.turn()
    clock.sleep(3600)
    await pace.turn()


# -- which providers there are --------------------------------------------------------------------


class Library:
    """A provider of another package."""

    async def search(self, query: str, limit: int) -> list[Found]:
        return [Found(f"https://library.example/{query}", id="library:1", text="A book.")]


def make_library(web: Web) -> SearchProvider:
    assert web.service("https://library.example", per_second=1)
    return Library()


def make_nothing(web: Web) -> None:
    """Its own settings are missing."""


def point(name: str, function: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{function}", "postback.search")


def names(*installed: EntryPoint, **settings: Any) -> list[str]:
    return list(providers(SearchSettings.model_validate(settings), Web("x", CLOCK), installed))


def test_what_is_not_configured_is_not_there() -> None:
    assert names() == ["arxiv", "pubmed", "wikipedia"]
    assert names(searxng={"base_url": "http://searx.internal"}, brave={"api_key": "k"}) == sorted(NAMES)


def test_an_operator_may_allow_some_only() -> None:
    assert names(providers="pubmed, wikipedia") == ["pubmed", "wikipedia"]
    assert names(providers="") == []


@pytest.mark.parametrize("name", ["brave", "nosuch"])
def test_a_provider_that_is_allowed_and_not_there_ends_the_start(name: str) -> None:
    with pytest.raises(SearchMisconfigured, match=f"POSTBACK_SEARCH__PROVIDERS names {name}"):
        names(providers=f"pubmed,{name}")


async def test_another_package_adds_a_provider_by_an_entry_point() -> None:
    installed = [point("library", "make_library"), point("other", "make_nothing")]
    made = providers(SearchSettings(), Web("x", CLOCK), installed)
    assert sorted(made) == ["arxiv", "library", "pubmed", "wikipedia"]
    assert [one.id for one in await made["library"].search("book", 1)] == ["library:1"]
    assert names(*installed, providers="library") == ["library"]


def test_the_entry_point_of_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "library_search-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: library-search\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[postback.search]\nlibrary = {__name__}:make_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(providers(SearchSettings(), Web("x", CLOCK))["library"], Library)


@pytest.mark.parametrize(
    ("installed", "why"),
    [
        (point("pubmed", "make_library"), "a name of ours: pubmed"),
        (point("broken", "no_such_function"), r"broken .*no_such_function.* cannot be made: AttributeError"),
    ],
)
def test_an_entry_point_that_is_wrong_ends_the_start_and_names_itself(installed: EntryPoint, why: str) -> None:
    with pytest.raises(SearchMisconfigured, match=why):
        names(installed)


def test_settings_come_from_the_environment_and_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_SEARCH__BRAVE__API_KEY", "brave-key")
    monkeypatch.setenv("POSTBACK_SEARCH__PROVIDERS", "brave,arxiv")
    settings = SearchSettings()
    assert list(providers(settings, Web("x", CLOCK), [])) == ["arxiv", "brave"]
    assert "brave-key" not in repr(settings)
