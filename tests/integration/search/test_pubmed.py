"""PubMed in its real format, including quirks and errors."""

from __future__ import annotations

import pytest

from tests.integration.search.asking import failure, found
from tests.integration.search_services import (
    CLOCK,
    Reply,
    answering,
    configured,
    efetch,
    esearch,
    in_json,
    pubmed_article,
)
from workers.enrichment.evidence import Found, Particulars
from workers.enrichment.search.base import SearchQuery

STRUCTURED = """<AbstractText Label="BACKGROUND">Why.</AbstractText>
<AbstractText Label="RESULTS" NlmCategory="RESULTS">So.</AbstractText><CopyrightInformation>X</CopyrightInformation>"""


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


async def test_pubmed_gets_our_contact_and_a_question_without_results_is_widened() -> None:
    async with (
        answering(esearch(), esearch()) as service,
        configured("pubmed", service.url, api_key="ncbi-key", email="me@example.com") as provider,
    ):
        assert await provider.search(SearchQuery("Does aspirin help?", 3)) == []
        strict, wide = service.queries
        assert [request.path for request in service.asked] == ["/esearch.fcgi"] * 2
        assert strict == {
            "db": "pubmed", "tool": "postback", "email": "me@example.com", "api_key": "ncbi-key", "retmax": "3",
            "retmode": "json", "sort": "relevance", "term": "(Does aspirin help?) AND hasabstract",
        }  # fmt: skip
        assert wide["term"] == "(aspirin OR help) AND hasabstract"


async def test_pubmed_queries_in_its_own_language_are_not_widened() -> None:
    async with answering(esearch()) as service, configured("pubmed", service.url) as provider:
        assert await provider.search(SearchQuery("aspirin[ti] AND 2020[dp]", 3)) == []
        assert len(service.asked) == 1


async def test_pubmed_faults_have_status_200_and_strings_for_numbers_and_stray_control_characters() -> None:
    fault = in_json({"header": {}, "esearchresult": {"ERROR": "Search Backend failed: halvorsen"}})
    assert "an internal error" in await failure("pubmed", fault)
    fault = Reply(b"<eFetchResult><ERROR>Unable to obtain query #1</ERROR></eFetchResult>", "text/xml")
    assert "an internal error" in await failure("pubmed", esearch("1"), fault)
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
            await provider.search(SearchQuery("aspirin[ti]", 1))
            await provider.search(SearchQuery("aspirin[ti]", 1))
            assert CLOCK.monotonic() - began >= seconds
