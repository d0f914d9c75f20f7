"""Date, DOI and canonical URL of a page, and untrusted values."""

from __future__ import annotations

import json

import pytest

from workers.enrichment.evidence import Particulars
from workers.enrichment.reading.extract import extract
from workers.enrichment.reading.particulars import doi_in, iso_date

URL = "https://www.journal.example/article/7?utm_source=feed"


def of(head: str, body: str = "<p>Text.</p>") -> Particulars:
    return extract(
        f"<html><head>{head}</head><body>{body}</body></html>".encode(), "text/html", "utf-8", URL
    ).particulars


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("<meta name=citation_publication_date content='2023/05/17'>", ""),
        ("<meta property='article:published_time' content='2023-05-17T10:11:12+02:00'>", ""),
        ("<meta name='DC.Date' content='2023-05-17'>", ""),
        ("<meta name=date content='yesterday'><meta itemprop=datePublished content=20230517>", ""),
        ('<script type="application/ld+json">{"@type": "Report", "datePublished": "2023-05-17T00:00Z"}</script>', ""),
        ('<script type="application/ld+json">[{"@graph": [{"datePublished": "2023-05-17"}]}]</script>', ""),
        ("", "<article><time datetime='2023-05-17 09:00'>in May</time></article>"),
    ],
)  # fmt: skip
def test_the_date_is_found_where_publishers_put_it(head: str, body: str) -> None:
    assert of(head, f"<p>Text.</p>{body}").published == "2023-05-17"


def test_the_date_of_a_comment_is_not_that_of_the_article() -> None:
    nested = {"@type": "Article", "comment": [{"@type": "Comment", "datePublished": "2024-01-01"}]}
    script = f'<script type="application/ld+json">{json.dumps(nested)}</script>'
    assert of(script, "<p>Text.</p><div class=comment><time datetime=2024-01-01>then</time></div>").published is None


@pytest.mark.parametrize(
    "script", ["{", "[" * 50_000, "null", "7", '{"@graph": 7, "datePublished": 7}', '{"datePublished": "99999"}']
)
def test_invalid_linked_data_is_passed_over(script: str) -> None:
    assert of(f'<script type="application/ld+json">{script}</script>') == Particulars()


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2023", "2023"), ("2023-05", "2023-05"), ("2023.05.17", "2023-05-17"), (" 1999/12/31 x", "1999-12-31"),
        ("2023-13-01", "2023"), ("17.05.2023", None), ("", None), (None, None), (2023, None), ("20231", None),
    ],
)  # fmt: skip
def test_dates_are_as_exact_as_they_are_given(text: object, date: str | None) -> None:
    assert iso_date(text) == date


@pytest.mark.parametrize(
    ("head", "doi"),
    [
        ("<meta name=citation_doi content='10.1000/xyz123'>", "10.1000/xyz123"),
        ("<meta name='DC.Identifier' content='doi:10.1000/xyz123'>", "10.1000/xyz123"),
        ('<script type="application/ld+json">{"sameAs": "https://doi.org/10.1000/xyz123"}</script>', "10.1000/xyz123"),
        ("<meta name='dc.identifier' content='urn:isbn:123'>", None),
    ],
)
def test_the_doi_is_found_in_the_head(head: str, doi: str | None) -> None:
    assert of(head).doi == doi


@pytest.mark.parametrize(
    ("text", "doi"),
    [
        ("see https://doi.org/10.1000/xyz(1)2.", "10.1000/xyz(1)2"),
        ("(doi:10.1000/xyz)", "10.1000/xyz"),
        ("10.1000/xyz; next", "10.1000/xyz"),
        ("10.1000/https://evil.example/x", None),
        ("10.1000///evil.example/x", None),
        ("version 10.5/3", None),
        (7, None),
    ],
)
def test_a_doi_ends_where_the_sentence_goes_on(text: object, doi: str | None) -> None:
    assert doi_in(text) == doi


@pytest.mark.parametrize(
    ("head", "canonical"),
    [
        ("<link rel=canonical href='/article/7'>", "https://www.journal.example/article/7"),
        ("<link rel='alternate canonical' href='https://www.journal.example/a#top'>", "https://www.journal.example/a"),
        ("<link rel=canonical href='https://journal.example/a'>", None),
        ("<link rel=canonical href='http://www.journal.example/a'>", None),
        ("<meta property='og:url' content='https://www.journal.example/b'>", "https://www.journal.example/b"),
        ("<link rel=canonical href='https://famous.example/article'>", None),
        ("<link rel=canonical href='https://www.journal.example:8443/'>", None),
        ("<link rel=canonical href='https://user:pw@www.journal.example/'>", None),
        ("<link rel=canonical href='javascript:alert(1)'>", None),
        ("<link rel=canonical href='http://['>", None),
        ("<link rel=canonical>", None),
    ],
)
def test_a_page_names_its_own_address_and_no_other_pages(head: str, canonical: str | None) -> None:
    assert of(head).canonical_url == canonical


def test_a_json_document_tells_title_date_and_doi_by_its_outermost_fields() -> None:
    body = {"headline": " A  bridge", "datePublished": "2023-05-17", "doi": "10.1000/x", "inner": {"title": "No"}}
    extracted = extract(json.dumps(body).encode(), "application/ld+json", None)
    assert (extracted.title, extracted.particulars) == ("A bridge", Particulars("2023-05-17", doi="10.1000/x"))
    assert extract(b'[{"title": "No"}]', "application/json", None).title is None
