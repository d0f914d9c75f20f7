"""Search providers at services in their real formats, with quirks and errors; filters, excerpts, and the registry."""

from __future__ import annotations

import asyncio
import re
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import Search, Sources
from scripts.play.site import Site
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.integration.profiled_worker import working
from tests.integration.raw_server import FACT, HTML, LOOPBACK, page, saying, speaking
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
    pubmed_at_its_pace,
    searxng,
    wiki_error,
    wiki_page,
    wikipedia,
)
from tests.virtual_time import in_jumping_time, jump
from workers.egress import Guard
from workers.enrichment.enrich import Bounds, Enricher
from workers.enrichment.evidence import Evidence, Found, Particulars, Unreadable
from workers.enrichment.search.base import (
    MAX_EXCERPT_CHARS,
    ReadsById,
    SearchMisconfigured,
    SearchProvider,
    SearchQuery,
    plain_excerpt,
)
from workers.enrichment.search.providers import providers
from workers.enrichment.search.pubmed import MAX_ARTICLES
from workers.enrichment.search.searches import Searches
from workers.enrichment.search.service import RequestPace, Web
from workers.enrichment.settings import EnrichmentSettings, SearchSettings

LINK = {"url": "https://a.example/1", "title": "One"}
SECTIONS: dict[str, dict[str, Any]] = {"brave": {"api_key": "brave-key"}, "pubmed": {"api_key": "ncbi-key"}}
NAMES = ["searxng", "wikipedia", "pubmed", "arxiv", "brave"]


async def found(name: str, *replies: Reply, limit: int = 5) -> list[Found]:
    async with answering(*replies) as service, configured(name, service.url, **SECTIONS.get(name, {})) as provider:
        return await provider.search(SearchQuery("halvorsen bridge", limit))


async def failure(name: str, *replies: Reply) -> str:
    """The reason of a failed search; asserts that it reveals neither the query, a key nor the service's address."""
    with pytest.raises(Unreadable) as caught:
        await found(name, *replies)
    text = str(caught.value)
    assert not any(secret in text for secret in ("halvorsen", "key=", "brave-key", "ncbi-key", "127.0.0.1"))
    return text


# -- results -----------------------------------------------------------------------------------------------------------

EXCERPT = "The Halvorsen bridge opened in 1987 & was repaired."
MARKED = "The <strong>Halvorsen</strong> bridge opened in 1987 &amp; was repaired."
WHOLE = Found("https://a.example/1", title="One", excerpt=EXCERPT, particulars=Particulars("2004-05-06"))
STRUCTURED = """<AbstractText Label="BACKGROUND">Why.</AbstractText>
<AbstractText Label="RESULTS" NlmCategory="RESULTS">So.</AbstractText><CopyrightInformation>X</CopyrightInformation>"""
TEXT = "<AbstractText>Text.</AbstractText>"
DAY = "2023-05-20"
PUBMED, ARXIV = "https://pubmed.ncbi.nlm.nih.gov", "https://arxiv.org/abs"
BOOK = """<PubmedBookArticle><BookDocument><PMID Version="1">77</PMID><Book><BookTitle>Drugs</BookTitle><PubDate>
<Year>2024</Year></PubDate></Book><ArticleTitle>Aspirin</ArticleTitle><Abstract><AbstractText>A drug.</AbstractText>
</Abstract></BookDocument></PubmedBookArticle>"""
# PubMed writes strings for numbers, and control characters into JSON.
STRAY = Reply(b'{"esearchresult": {"count": "0", "idlist": [], "querytranslation": "a\tb\x01"}}')


@pytest.mark.parametrize(
    ("name", "replies", "results"),
    [
        (
            "searxng",
            [
                searxng(
                    LINK, {"url": "magnet:?xt=urn:btih:1", "title": "Torrent"}, {"title": "No URL"},
                    {"url": "https://u:p@b.example/"}, {**LINK, "title": "Again"},
                    {"url": "http://b.example/2", "title": ""}, {"url": "https://c.example/"},
                )
            ],
            [Found("https://a.example/1", title="One"), Found("http://b.example/2")],
        ),
        ("searxng", [searxng({**LINK, "content": MARKED, "publishedDate": "2004-05-06T00:00:00"})], [WHOLE]),
        (
            "searxng",
            [searxng({**LINK, "content": None, "publishedDate": None})],
            [Found("https://a.example/1", title="One")],
        ),
        (
            "brave",
            [brave({**LINK, "description": MARKED, "extra_snippets": [MARKED], "page_age": "2004-05-06T10:00:00"})],
            [WHOLE],
        ),
        (
            "brave",
            [brave(LINK, {"url": "https://b.example/", "title": "Two", "description": "…"})],
            [Found("https://a.example/1", title="One"), Found("https://b.example/", title="Two", excerpt="…")],
        ),
        (
            "wikipedia",
            [
                wikipedia(
                    wiki_page(11, 3, "Bridge (music)"),
                    wiki_page(12, 2, "Bridge", disambiguation=""),
                    wiki_page(90, 1, "Halvorsen bridge"),
                )
            ],
            [
                Found("https://en.wikipedia.org/wiki/Halvorsen_bridge", title="Halvorsen bridge"),
                Found("https://en.wikipedia.org/wiki/Bridge_(music)", title="Bridge (music)"),
            ],
        ),
        (
            "pubmed",
            [
                esearch("222", "111"),
                efetch(
                    pubmed_article(
                        "111", "On <i>bridges</i>.", "<AbstractText>CO<sub>2</sub> falls by 12&#37;.</AbstractText>"
                    ),
                    pubmed_article("222", "Trial", STRUCTURED),
                ),
            ],
            [
                Found(
                    f"{PUBMED}/222/", "pmid:222", "Trial", "BACKGROUND: Why.\n\nRESULTS: So.",
                    Particulars("2019-03-05", doi="10.1000/test.222"),
                ),
                Found(
                    f"{PUBMED}/111/", "pmid:111", "On bridges", "CO2 falls by 12%.",
                    Particulars("2019-03-05", doi="10.1000/test.111"),
                ),
            ],
        ),
        (
            "arxiv",
            [
                atom(
                    paper("2305.12345v2", "Bridges <of\n  Tarnby", "We measure\n bridges & rivers.", doi="10.1000/x.1"),
                    paper("hep-th/9901001v1", "Old", "Strings."),
                )
            ],
            [
                Found(
                    f"{ARXIV}/2305.12345v2", "arxiv:2305.12345", "Bridges <of Tarnby", "We measure bridges & rivers.",
                    Particulars(DAY, doi="10.1000/x.1"),
                ),
                Found(f"{ARXIV}/hep-th/9901001v1", "arxiv:hep-th/9901001", "Old", "Strings.", Particulars(DAY)),
            ],
        ),
        ("searxng", [searxng()], []),
        ("brave", [brave()], []),
        ("wikipedia", [wikipedia()], []),
        ("arxiv", [atom(total=0)], []),
        ("pubmed", [STRAY], []),
    ],
)  # fmt: skip
async def test_a_service_s_usable_results_are_found_once_each_in_the_order_of_relevance(
    name: str, replies: list[Reply], results: list[Found]
) -> None:
    assert await found(name, *replies, limit=2) == results


@pytest.mark.parametrize(
    ("name", "replies", "ids"),
    [
        (
            "pubmed",
            [
                esearch("1", "2", "3", "4"),
                efetch(
                    pubmed_article("1", "No abstract", ""),
                    pubmed_article("2", "Empty abstract", "<AbstractText/>"),
                    pubmed_article("3", "Retracted", TEXT, kind="D016441"),
                    pubmed_article("4", "Good", TEXT),
                    "<DeleteCitation><PMID>5</PMID></DeleteCitation>",
                ),
            ],
            ["pmid:4"],
        ),
        (
            "arxiv",
            [
                atom(
                    paper("2305.00001v3", "Gone", "This paper has been withdrawn by the author due to an error."),
                    paper("2305.00002v1", "Silent", ""),
                    "<entry><title>Without an id</title><summary>x</summary></entry>",
                    paper("2305.00003v1", "Here", "Withdrawn troops are what this paper counts? No: bridges."),
                    paper("2305.00004v1", "Also here", "We count bridges from which troops were withdrawn."),
                    paper("math.GT/0309136v1", "Older", "Knots."),
                )
            ],
            ["arxiv:2305.00004", "arxiv:math.GT/0309136"],
        ),
    ],
)
async def test_papers_that_were_withdrawn_or_say_nothing_are_no_sources(
    name: str, replies: list[Reply], ids: list[str]
) -> None:
    assert [one.id for one in await found(name, *replies)] == ids


@pytest.mark.parametrize(
    ("date", "published"),
    [
        ("<Year>2020</Year>", "2020"),
        ("<Year>2020</Year><Month>11</Month>", "2020-11"),
        ("<Year>2020</Year><Season>Fall</Season>", "2020"),
        ("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", "1998"),
        ("<MedlineDate>Winter</MedlineDate>", None),
        (None, "2024"),
    ],
)
async def test_pubmed_dates_of_articles_and_books_are_kept_as_exact_as_they_are(
    date: str | None, published: str | None
) -> None:
    article = pubmed_article("77", "T", TEXT).replace("<Year>2019</Year><Month>Mar</Month><Day>5</Day>", date or "")
    (one,) = await found("pubmed", esearch("77"), efetch(article if date is not None else BOOK))
    assert one.particulars.published == published
    assert date is not None or (one.id, one.title, one.text) == ("pmid:77", "Aspirin", "A drug.")


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (page_of_html(), "is not JSON|XML|Atom"),
        (
            page_of_html(500),
            "the search service answered 500$|answer is not XML that can be read$",
        ),
        (in_json([1, 2]), "another form|XML"),
        (in_json({"results": 7, "esearchresult": 7, "query": 7, "web": 7}), "another form|XML"),
    ],
)
async def test_an_answer_of_another_form_is_no_result(name: str, reply: Reply, why: str) -> None:
    assert re.search(why, await failure(name, reply))


OVERLOADED, WRONG_KEY = "the search service is overloaded", "the search service refuses the operator's key"
MONTH = {"X_RateLimit_Remaining": "0, 0", "X_RateLimit_Reset": "1, 1419704"}
ARXIV_ERROR = atom(ATOM_ERROR)
FAULT = Reply(b"<eFetchResult><ERROR>Unable to obtain query #1</ERROR></eFetchResult>", "text/xml")


@pytest.mark.parametrize(
    ("name", "replies", "why"),
    [
        ("searxng", [Reply(b"", "text/plain", 503, {"Retry-After": "0"})], f"^{OVERLOADED}$"),
        ("searxng", [Reply(b" " * (9 * 1024 * 1024))], "too large"),
        ("searxng", [page_of_html(403)], "`json` is missing in its search.formats"),
        ("searxng", [searxng(unresponsive=[["google", "Suspended: CAPTCHA"]])], "none of"),
        (
            "wikipedia",
            [wiki_error("maxlag", "Waiting for 10.64.16.7: 7.3 seconds.", Retry_After="5", X_Database_Lag="7")],
            f"^{OVERLOADED} and asks to wait 5 s$",
        ),
        ("wikipedia", [wiki_error("cirrussearch-query-too-long", "halvorsen")], "refuses the query"),
        ("arxiv", [ARXIV_ERROR], "does not understand"),
        ("arxiv", [Reply(ARXIV_ERROR.body, ARXIV_ERROR.media_type, 400)], "does not understand"),
        # arXiv answers an empty page now and then, although there are results.
        ("arxiv", [atom(total=30)], "empty page"),
        ("brave", [brave_error(422, "SUBSCRIPTION_TOKEN_INVALID")], WRONG_KEY),
        ("brave", [brave_error(401, "SUBSCRIPTION_TOKEN_MISSING")], WRONG_KEY),
        ("brave", [brave_error(422, "VALIDATION")], "refuses the query"),
        ("brave", [brave_error(404, "NOT_FOUND")], "answered 404"),
        ("brave", [brave_error(429, "RATE_LIMITED", **MONTH)], "asks to wait 1419704 s"),
        # PubMed's faults have the status 200.
        ("pubmed", [in_json({"esearchresult": {"ERROR": "Search Backend failed: halvorsen"}})], "an internal error"),
        ("pubmed", [esearch("1"), FAULT], "an internal error"),
        ("pubmed", [in_json({"error": "API key invalid", "api-key": "ncbi-key"}, 400)], f"^{WRONG_KEY}$"),
        ("pubmed", [in_json({"error": "API rate limit exceeded", "api-key": "ncbi-key"}, 429)], f"^{OVERLOADED}$"),
    ],
)
async def test_each_failure_of_a_service_has_its_reason(name: str, replies: list[Reply], why: str) -> None:
    assert re.search(why, await failure(name, *replies))


PLAN = {"X_RateLimit_Limit": "50, 0", "X_RateLimit_Policy": "50;w=1, 0;w=2592000", "X_RateLimit_Reset": "1, 1419704"}


@pytest.mark.parametrize(
    ("name", "busy"),
    [
        ("searxng", Reply(b"", "text/plain", 503, {"Retry-After": "0"})),
        *(
            ("searxng", Reply(b"", "text/plain", 429, {"Retry-After": value}))
            for value in ("Wed, 21 Oct 2015 07:28:00 GMT", "-5", "nan")
        ),
        # A window of Brave ends within a second, while the window of the month has 900 requests left.
        ("brave", brave_error(429, "RATE_LIMITED", **{**MONTH, "X_RateLimit_Remaining": "0, 900"})),
        # Without a monthly limit, the second window says 0 of 0, so the reset time of that window does not matter.
        ("brave", brave_error(429, "RATE_LIMITED", **PLAN, X_RateLimit_Remaining="0, 0")),
        ("brave", brave_error(429, "RATE_LIMITED", **PLAN, X_RateLimit_Remaining="7, 0")),
        *(
            (
                "brave",
                brave_error(
                    429, "RATE_LIMITED", X_RateLimit_Limit=odd, X_RateLimit_Remaining=odd, X_RateLimit_Reset="1, z"
                ),
            )
            for odd in ("", "x, 0", "0", "-1, 0", "1, 1419704")
        ),
    ],
)
async def test_a_short_or_unreadable_wait_is_kept_and_then_the_service_is_asked_once_more(
    name: str, busy: Reply
) -> None:
    again = searxng(LINK) if name == "searxng" else brave(LINK)
    assert [one.title for one in await found(name, busy, again)] == ["One"]


@pytest.mark.parametrize("name", NAMES)
async def test_an_overloaded_service_that_asks_for_a_long_wait_is_left_alone_by_the_next_jobs(name: str) -> None:
    async with (
        answering(Reply(b"", "text/plain", 429, {"Retry-After": "120"})) as service,
        configured(name, service.url, **SECTIONS.get(name, {})) as provider,
    ):
        for why in ("asks to wait 120 s", "s without requests"):
            with pytest.raises(Unreadable, match=why):
                await provider.search(SearchQuery("x", 5))
        assert len(service.asked) == 1


async def test_a_redirect_is_not_followed_since_a_key_would_travel_on() -> None:
    async with answering(brave(LINK)) as other:
        away = Reply(b"", "text/html", 302, {"Location": other.url})
        assert await failure("brave", away) == "the search service answered 302"
        assert other.asked == []


async def test_a_service_that_is_not_there_is_a_reason() -> None:
    async with answering(searxng()) as service:
        gone = service.url
    async with configured("searxng", gone) as provider:
        with pytest.raises(Unreadable, match="could not be reached"):
            await provider.search(SearchQuery("x", 1))


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


# -- requests ----------------------------------------------------------------------------------------------------------

SINCE, UNTIL = "2024-01-02", "2024-12-31"
OURS = {"db": "pubmed", "tool": "postback", "email": "me@example.com", "api_key": "ncbi-key", "retmode": "json"}
RELEVANT = {"start": "0", "max_results": "4", "sortBy": "relevance"}


@pytest.mark.parametrize(
    ("name", "reply", "query", "sent"),
    [
        (
            "arxiv",
            atom(),
            SearchQuery("bridge", 4, since=SINCE, until=UNTIL),
            [{"search_query": "(all:bridge) AND submittedDate:[202401020000 TO 202412312359]", **RELEVANT}],
        ),
        (
            "arxiv",
            atom(),
            SearchQuery("bridge", 4, since=SINCE),
            [{"search_query": "(all:bridge) AND submittedDate:[202401020000 TO 299912312359]", **RELEVANT}],
        ),
        *(
            ("arxiv", atom(), SearchQuery(query, 4), [{**parameters, **RELEVANT}])
            for query, parameters in (
                ("What is a self-attention layer?", {"search_query": "all:self-attention OR all:layer"}),
                ("au:bengio AND ti:attention", {"search_query": "au:bengio AND ti:attention"}),
                ("arXiv:2305.12345v2", {"id_list": "2305.12345v2"}),
                ("hep-th/9901001", {"id_list": "hep-th/9901001"}),
                ('the "of" (and)', {"search_query": "all:the OR all:of OR all:and"}),
            )
        ),
        (
            "pubmed",
            esearch(),
            SearchQuery("bridge[ti]", 5, since=SINCE, until=UNTIL),
            [{"datetype": "pdat", "mindate": "2024/01/02", "maxdate": "2024/12/31"}],
        ),
        # A question without results is widened; a query in PubMed's own language is not.
        (
            "pubmed",
            esearch(),
            SearchQuery("Does aspirin help?", 3),
            [
                {**OURS, "retmax": "3", "sort": "relevance", "term": "(Does aspirin help?) AND hasabstract"},
                {"term": "(aspirin OR help) AND hasabstract"},
            ],
        ),
        ("pubmed", esearch(), SearchQuery("aspirin[ti] AND 2020[dp]", 3), [{}]),
        (
            "brave",
            brave(),
            SearchQuery("bridge", 5, domains=("who.int", "cdc.gov"), language="de", since=SINCE, until=UNTIL),
            [
                {
                    "q": "bridge (site:who.int OR site:cdc.gov)",
                    "freshness": "2024-01-02to2024-12-31",
                    "search_lang": "de",
                }
            ],
        ),
        ("brave", brave(), SearchQuery("word " * 80, 2), [{"q": " ".join(["word"] * 50), "count": "2"}]),
        (
            "searxng",
            searxng(),
            SearchQuery("halvorsen & bridge", 5, language="de"),
            [{"q": "halvorsen & bridge", "format": "json", "language": "de"}],
        ),
        # Wikipedia takes no query of more than 300 characters.
        (
            "wikipedia",
            wikipedia(),
            SearchQuery("Halvorsen " * 60, 5),
            [{"gsrsearch": ("Halvorsen " * 30)[:299], "maxlag": "5", "gsrlimit": "8"}],
        ),
    ],
)
async def test_a_service_is_asked_in_its_own_language_and_by_its_own_filters(
    name: str, reply: Reply, query: SearchQuery, sent: list[dict[str, str]]
) -> None:
    section = SECTIONS.get(name, {})
    async with answering(reply) as service, configured(name, f"{service.url}/instance/", **section) as provider:
        assert await provider.search(query) == []
    assert len(service.queries) == len(sent)
    for got, wanted in zip(service.queries, sent, strict=True):
        assert got.items() >= wanted.items()
        assert name != "arxiv" or got == wanted
    paths = {"searxng": "/instance/search", "pubmed": "/instance/esearch.fcgi"}
    assert {request.path for request in service.asked} == {paths.get(name, service.asked[0].path)}
    # Wikimedia answers 403 to a client without such a name.
    assert all("Postback" in request.headers["User-Agent"] for request in service.asked)
    assert {request.headers.get("X-Subscription-Token") for request in service.asked} == {
        "brave-key" if name == "brave" else None
    }


async def test_as_many_domains_are_sent_to_brave_as_fit_into_its_query() -> None:
    domains = tuple(f"host-number-{number}.example" for number in range(20))
    async with answering(brave()) as service, configured("brave", service.url, **SECTIONS["brave"]) as provider:
        await provider.search(SearchQuery("bridge " * 60, 5, domains=domains))
        sent = service.queries[0]["q"]
    assert len(sent) <= 400
    assert len(sent.split()) <= 50
    assert 3 <= sent.count("site:") < 20


async def test_requests_to_services_name_a_contact() -> None:
    asks = EnrichmentSettings(contact="ops@example.com")
    async with answering(esearch()) as service:
        web = Web(asks.named, CLOCK, asks.email)
        await web.start()
        made = providers(SearchSettings.model_validate({"pubmed": {"base_url": service.url}}), web, [])
        assert await made["pubmed"].search(SearchQuery("aspirin[ti]", 1)) == []
        await web.close()
        assert service.queries[0]["email"] == "ops@example.com"
        assert service.asked[0].headers["User-Agent"] == "Postback/0.1 (ops@example.com)"


# -- the pace ----------------------------------------------------------------------------------------------------------


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


async def test_a_service_is_asked_again_after_an_hour_at_most() -> None:
    clock = HandClock()
    pace = RequestPace(clock, 0.001)
    pace.rest(30 * 24 * 3600)
    with pytest.raises(Unreadable, match="3600 s without requests"):
        await pace.turn()
    clock.sleep(3600)
    await pace.turn()


@pytest.mark.parametrize(("key", "seconds"), [(None, 1 / 3), ("k", 1 / 10)])
async def test_pubmed_is_asked_three_times_a_second_and_ten_times_with_a_key(key: str | None, seconds: float) -> None:
    async with (
        answering(esearch()) as service,
        configured("pubmed", service.url, api_key=key, per_second=None) as provider,
    ):
        began = CLOCK.monotonic()
        for _ in range(2):
            await provider.search(SearchQuery("aspirin[ti]", 1))
        assert CLOCK.monotonic() - began >= seconds


# -- a job's searches --------------------------------------------------------------------------------------------------

LINKS = [{"url": f"https://{host}/1", "title": host} for host in ("who.int", "apps.who.int", "notwho.int", "a.example")]


async def test_results_are_those_on_the_domains_and_no_older_than_the_job_allows() -> None:
    async with answering(searxng(*LINKS)) as service, configured("searxng", service.url) as provider:
        searches = Searches({"searxng": provider}, 30.0, 600.0, CLOCK)
        on_domains = Search(provider="searxng", query="x", domains=["who.int"])
        assert [one.title for one in (await searches.find(on_domains, "a")).found] == ["who.int", "apps.who.int"]
        wanted = Search(provider="searxng", query="y")
        await searches.find(wanted, "a")
        await asyncio.sleep(0.02)
        await searches.find(wanted, "a", max_age_seconds=60.0)
        assert len(service.asked) == 2
        await searches.find(wanted, "a", max_age_seconds=0.001)
        assert len(service.asked) == 3


async def test_a_filter_that_the_provider_lacks_is_a_note() -> None:
    async with answering(wikipedia()) as service, working(wikipedia=service.url) as worker:
        search = {"provider": "wikipedia", "query": "x", "language": "de", "since": SINCE, "until": UNTIL}
        result = await worker.result({"search": search})
    said = [note for note in result.notes if "the search ran without it" in note]
    assert said == [
        f"the search at wikipedia has no {name}: the search ran without it" for name in ("since", "until", "language")
    ]


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


# -- excerpts: they and their dates stand in for pages that cannot be read ---------------------------------------------


class OneResult:
    """Implements `SearchProvider` with one result for each query."""

    def __init__(self, result: Found) -> None:
        self._result = result

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`."""
        return [self._result]


async def searched(url: str, excerpt: str | None) -> Evidence:
    settings = EnrichmentSettings(robots=False, budget_seconds=20.0, member_seconds=10.0)
    result = Found(url, title="A bridge", excerpt=excerpt, particulars=Particulars("2004-05-06"))
    enricher = Enricher(settings, Guard(LOOPBACK), CLOCK, Metrics(), {"brave": OneResult(result)})
    await enricher.start()
    try:
        wanted = Sources(search=Search(provider="brave", query="Halvorsen bridge"))
        return await enricher.enrich(wanted, "When did the Halvorsen bridge open?")
    finally:
        await enricher.close()


async def test_the_excerpt_is_the_source_with_a_note_only_if_the_page_cannot_be_read() -> None:
    async with speaking(saying(b"", status="403 Forbidden")) as origin:
        evidence = await searched(origin, EXCERPT)
        nothing = await searched(origin, None)
    (source,) = evidence.sources
    assert (source.title, source.passages, source.particulars.published) == ("A bridge", (EXCERPT,), "2004-05-06")
    assert evidence.notes == (f"source 1 ({origin}) is only the search service's excerpt: its server answered 403",)
    assert nothing.sources == ()
    async with speaking(saying(page(), HTML)) as origin:
        readable = await searched(origin, "Another excerpt of the Halvorsen bridge.")
    assert FACT in " ".join(readable.sources[0].passages)
    assert "Another excerpt" not in " ".join(readable.sources[0].passages)


@pytest.mark.parametrize("texts", [("",), (None,), ("<b></b>", None), ()])
def test_an_excerpt_without_text_does_not_count(texts: tuple[str | None, ...]) -> None:
    assert plain_excerpt(*texts) is None


@given(st.lists(st.none() | st.text(alphabet="<>/ab &;#x1\u200b", max_size=300) | st.text(), max_size=4))
def test_any_excerpt_is_one_line_without_tags(texts: list[str | None]) -> None:
    excerpt = plain_excerpt(*texts)
    assert excerpt is None or (0 < len(excerpt) <= MAX_EXCERPT_CHARS and excerpt == " ".join(excerpt.split()))


# -- the registry ------------------------------------------------------------------------------------------------------


class Library:
    """A provider of another package."""

    async def search(self, query: SearchQuery) -> list[Found]:
        return [Found(f"https://library.example/{query.text}", id="library:1", text="A book.")]


def make_library(web: Web) -> SearchProvider:
    assert web.service("https://library.example", per_second=1)
    return Library()


def make_nothing(web: Web) -> None:
    """Another package's factory that makes no provider, since its own settings are missing."""


def point(name: str, function: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{function}", "postback.search")


def names(*installed: EntryPoint, **settings: Any) -> list[str]:
    return list(providers(SearchSettings.model_validate(settings), Web("x", CLOCK), installed))


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({}, ["arxiv", "pubmed", "wikipedia"]),
        ({"searxng": {"base_url": "http://searx.internal"}, "brave": {"api_key": "k"}}, sorted(NAMES)),
        ({"allowed": "pubmed, wikipedia"}, ["pubmed", "wikipedia"]),
        ({"allowed": ""}, []),
    ],
)
def test_a_provider_exists_if_it_is_configured_and_allowed(settings: dict[str, Any], made: list[str]) -> None:
    assert names(**settings) == made


@pytest.mark.parametrize("name", ["brave", "nosuch"])
def test_a_provider_that_is_allowed_but_missing_ends_the_start(name: str) -> None:
    with pytest.raises(SearchMisconfigured, match=f"POSTBACK_SEARCH__ALLOWED names {name}"):
        names(allowed=f"pubmed,{name}")


async def test_another_package_adds_a_provider_by_an_entry_point() -> None:
    installed = [point("library", "make_library"), point("other", "make_nothing")]
    made = providers(SearchSettings(), Web("x", CLOCK), installed)
    assert sorted(made) == ["arxiv", "library", "pubmed", "wikipedia"]
    assert [one.id for one in await made["library"].search(SearchQuery("book", 1))] == ["library:1"]
    assert names(*installed, allowed="library") == ["library"]


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
        (point("pubmed", "make_library"), "a built-in provider's name: pubmed"),
        (point("broken", "no_such_function"), r"broken .*no_such_function.* cannot be made: AttributeError"),
    ],
)
def test_an_entry_point_that_is_wrong_ends_the_start_and_names_itself(installed: EntryPoint, why: str) -> None:
    with pytest.raises(SearchMisconfigured, match=why):
        names(installed)


def test_settings_come_from_the_environment_and_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_SEARCH__BRAVE__API_KEY", "brave-key")
    monkeypatch.setenv("POSTBACK_SEARCH__ALLOWED", "brave,arxiv")
    settings = SearchSettings()
    assert list(providers(settings, Web("x", CLOCK), [])) == ["arxiv", "brave"]
    assert "brave-key" not in repr(settings)


# -- many simultaneous searches ------------------------------------------------------------------------------------

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
