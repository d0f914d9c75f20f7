"""The words of a source that a citation quotes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.result import Support
from workers.enrichment.answering.answer import answered
from workers.enrichment.answering.cite import cited
from workers.enrichment.answering.grounding import visible
from workers.enrichment.answering.profile import Profile
from workers.enrichment.answering.quotes import CONTEXT_CHARS, MAX_COMPARED, MAX_QUOTE_CHARS, contains
from workers.enrichment.evidence import Evidence, NumberedSource

TEXT = (
    "The Halvorsen bridge in Tarnby opened in 1987. It carries the coast road over the river Vesla. "
    "See https://a.example/more?q=1 for the ﬁnal “Report” on STRAẞE traffic."
)


def evidence(*passages: str, title: str | None = None) -> Evidence:
    source = NumberedSource(1, "https://a.example/", "https://a.example/", title, passages)
    return Evidence((source,), (), "?")


def quoted(sentence: str, *passages: str, title: str | None = None) -> str | None:
    [citation] = cited(f"{sentence} [1].", evidence(*passages, title=title))[2]
    return citation.quote.exact if citation.quote is not None else None


@pytest.mark.parametrize(
    ("sentence", "quote"),
    [
        ("the halvorsen BRIDGE in Tarnby opened in 1987", "The Halvorsen bridge in Tarnby opened in 1987"),
        ("It carries the coast road", "It carries the coast road"),
        ("the final report on Strasse traffic", "the ﬁnal “Report” on STRAẞE traffic"),
        ("The Halvorsen bridge in Tarnby was opened in 1987", "Halvorsen bridge in Tarnby opened in 1987"),
        ("Over the Vesla a road of the coast goes on a bridge", "bridge in Tarnby opened in 1987. It carries the coast "
         "road over the river Vesla"),
    ],
)  # fmt: skip
def test_a_citation_quotes_the_sources_words_as_the_source_writes_them(sentence: str, quote: str) -> None:
    assert quoted(sentence, TEXT) == quote


def test_a_quote_is_taken_from_the_passage_or_the_title_that_has_the_words() -> None:
    assert (
        quoted("It opened in 1987", "A page about roads.", "Later it opened in 1987, they say.") == "it opened in 1987"
    )
    assert quoted("Seven bridges of Tarnby", "A page about roads.", title="Seven bridges of Tarnby") is not None


def test_the_words_around_a_quote_locate_it() -> None:
    [citation] = cited("It carries the coast road [1].", evidence(TEXT))[2]
    assert citation.quote is not None
    assert citation.quote.prefix + citation.quote.exact + citation.quote.suffix in TEXT
    assert (len(citation.quote.prefix), len(citation.quote.suffix)) == (CONTEXT_CHARS, CONTEXT_CHARS)


def test_a_quote_has_no_link_of_the_page_and_no_invisible_character() -> None:
    hidden = "The ferry Astrelle carries\u200b 310 \u202epassengers https://evil.example/?leak=1 over the Vesla."
    [citation] = cited("The ferry Astrelle carries 310 passengers over the Vesla [1].", evidence(hidden))[2]
    assert citation.support is Support.EXACT
    assert citation.quote is not None
    assert citation.quote.exact == "The ferry Astrelle carries 310 passengers (link removed) over the Vesla"


def test_a_citation_without_support_has_no_quote() -> None:
    assert quoted("Penguins live in the far south", TEXT) is None
    assert cited("It opened in 1987 [7].", evidence(TEXT))[2][0].quote is None


def test_an_item_of_an_evidence_chain_has_the_quote_that_its_source_writes() -> None:
    profile = Profile(name="chain", evidence_chain="evidence")
    text = (
        '{"evidence": [{"source": 1, "quote": "it carries the COAST road"}, {"source": 1, "quote": "no such words"}]}'
    )
    first, second = answered(text, evidence(TEXT), profile, is_json=True).citations
    assert first.quote is not None
    assert first.quote.exact == "It carries the coast road"
    assert second.quote is None


WORDS = st.text(st.sampled_from("abc 12.,'’-ﬁßẞÅ각中\u200b\u00ad\u0301\n[]()https://www.x.y"), max_size=80)  # noqa: RUF001 - an apostrophe of pages


@given(st.lists(WORDS | st.text(max_size=60), max_size=4), st.integers(0, 200), st.integers(0, 80), WORDS)
@example(["W\x1bµ"], 0, 0, "w")
@example(["co\u00adoperate"], 0, 13, "")
@example(["ww\u200bw.x.y a"], 0, 20, "")
def test_a_quote_is_part_of_its_source_whatever_page_and_answer_hold(
    passages: list[str], start: int, length: int, noise: str
) -> None:
    joined = " ".join(passages)
    said = joined[start : start + length] + noise
    for citation in cited(f"{said} [1]", evidence(*passages))[2]:
        if citation.quote is not None:
            assert len(citation.quote.exact) <= 2 * MAX_QUOTE_CHARS
            assert any(contains(visible(passage), citation.quote.exact) for passage in passages)


def test_a_long_quote_ends_at_a_word_and_is_found_again() -> None:
    long = " ".join(f"word{number}" for number in range(400))
    quote = quoted(long, long)
    assert quote is not None
    assert len(quote) <= MAX_QUOTE_CHARS
    assert contains(long, quote)
    assert quote.split()[-1] in long.split()


def test_quotes_are_looked_for_up_to_a_bound() -> None:
    """An answer that cites all sources everywhere would delay others, so citations beyond a bound get no quote."""
    page = NumberedSource(1, "a", "a", None, ("alpha beta gamma delta. " * 1000,))
    _, _, citations = cited("Alpha delta beta gamma [1]. " * 100, Evidence((page,)))
    within = MAX_COMPARED // 4000
    assert [one.quote is not None for one in citations] == [True] * within + [False] * (100 - within)


def test_a_long_chat_is_read_for_links_once_for_all_citations() -> None:
    chat = "see https://own.example/a and www.other.example " * 90_000
    page = NumberedSource(1, "a", "a", None, ("alpha beta gamma delta",))
    evidence = Evidence((page,), conversation=chat)
    _, _, citations = cited("Alpha beta gamma delta [1]. " * 500, evidence)
    assert len(citations) == 500
    assert all(one.quote is not None for one in citations)


def test_a_long_page_is_split_once_for_all_its_quotes() -> None:
    page = "alpha beta gamma delta " * 100_000
    assert all(contains(page, "gamma delta alpha") for _ in range(1000))
