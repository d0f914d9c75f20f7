"""A result's facts about its answer: source details, evidence list or chain, and whether the answer may stand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from schemas.result import SourceDetails, Support
from workers.enrichment.answering.answer import Unsupported, answered
from workers.enrichment.answering.links import without_unknown_links
from workers.enrichment.answering.profile import Profile, Profiles
from workers.enrichment.evidence import Evidence, NumberedSource, Particulars

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


def test_the_details_of_the_sources_that_are_used_go_with_the_answer() -> None:
    answer = answered("Bleeding was more frequent with aspirin. [1]", EVIDENCE, PROFILES["default"])
    assert answer.text == "Bleeding was more frequent with aspirin. [1]"
    assert answer.sources == (DETAILS,)
    assert [(one.source, one.support) for one in answer.citations] == [("pmid:111", Support.EXACT)]


def test_a_source_has_the_address_where_it_was_read_and_also_the_one_that_its_page_states() -> None:
    answer = answered("The bank owes 3.5 billion crowns [2].", EVIDENCE, PROFILES["default"])
    read_at = "https://b.example/?utm=1"
    assert answer.sources == (SourceDetails(id=read_at, url=read_at, canonical_url="https://b.example/"),)


def test_an_answer_may_link_where_its_source_was_read_and_not_where_the_page_would_like() -> None:
    (one, two) = EVIDENCE.sources
    read = Evidence((one, replace(two, url="https://b.example/read", id="https://b.example/go")))
    said = "It owes 3.5 billion crowns [2]: https://b.example/read https://b.example/go https://b.example/"
    answer = answered(said, read, PROFILES["default"])
    assert answer.text == said.removesuffix("https://b.example/") + "(link removed)"
    assert answer.sources[0].url == "https://b.example/read"


# -- medical -------------------------------------------------------------------------------------------------------


def test_a_medical_answer_lists_its_evidence_below_and_its_spans_stay() -> None:
    said = "Aspirin lowered the risk of stroke by 12 percent [1]."
    answer = answered(said, EVIDENCE, PROFILES["medical"])
    assert answer.text == f"{said}\n\nEvidence:\n[1] Aspirin and stroke. 2019-03-05. pmid:111. doi:10.1000/x"
    (citation,) = answer.citations
    assert answer.text[citation.start : citation.end] == said


def test_a_pages_statements_about_itself_are_no_links_in_the_evidence_list_nor_in_its_details() -> None:
    title = "Log in at https://evil.example/x ![i](//evil.example/i.png) <img src=//evil.example/i.png> _now_"
    source = NumberedSource(1, "pmid:1", "https://a.example/1", title, (TEXT,), ("asks for a link",))
    said = "Aspirin lowered the risk of stroke by 12 percent [1]."
    answer = answered(said, Evidence((source,)), PROFILES["medical"])
    (details,) = answer.sources
    assert details.title == "Log in at (link removed) i < img src=(link removed) _now_"
    assert answer.text == f"{said}\n\nEvidence:\n[1] {details.title}. pmid:1"


@pytest.mark.parametrize(
    "title", ["(x) of it", ": a history", "[r]: //evil.example/i.png", "<script>", "![", "x](//e.example/"]
)
def test_a_title_forms_no_mark_with_the_text_before_it(title: str) -> None:
    source = NumberedSource(1, "pmid:1", "https://a.example/1", title, (TEXT,))
    answer = answered("Aspirin lowered the risk of stroke by 12 percent [1].", Evidence((source,)), PROFILES["medical"])
    assert without_unknown_links(answer.text, Evidence((source,))) == answer.text


@pytest.mark.parametrize(
    "text",
    ["Vitamin C cures every cold.", "Vitamin C cures every cold [1].", "Aspirin lowered it by 77 percent [9].", ""],
    ids=["nothing cited", "cited and not supported", "dangling", "empty"],
)
def test_there_is_no_medical_answer_without_support(text: str) -> None:
    with pytest.raises(Unsupported, match="the profile medical gives no answer without support"):
        answered(text, EVIDENCE, PROFILES["medical"])


def test_a_profile_may_want_stronger_support() -> None:
    loose = "In adults, aspirin was seen to make bleeding frequent [1]."
    lexical = Profile(name="lexical", minimum_support="lexical")
    assert answered(loose, EVIDENCE, lexical).citations[0].support is Support.LEXICAL
    with pytest.raises(Unsupported):
        answered(loose, EVIDENCE, Profile(name="strict", minimum_support="fuzzy"))


# -- finance -------------------------------------------------------------------------------------------------------


def judged(*evidence: Any, **more: Any) -> str:
    chain = [
        item if isinstance(item, dict) else {"claim": "c", "source": item[0], "quote": item[1]} for item in evidence
    ]
    return json.dumps({"summary": "s", "evidence": chain, "risk_score": 40, "risk_level": "medium", **more})


def test_each_quote_of_an_evidence_chain_is_compared_with_the_source_that_it_names() -> None:
    quotes = [
        (2, "The bank owes 3.5 billion crowns."),
        (1, "Aspirin lowered the risk of stroke. By 12 percent"),
        (1, "The bank owes 3.5 billion crowns."),
        (7, "Anything at all."),
        (2, "…"),
        (2, ""),
        ("2", "The bank owes 3.5 billion crowns."),
        (12345, "The bank owes 3.5 billion crowns."),
        (None, "The bank owes 3.5 billion crowns."),
    ]
    answer = answered(judged(*quotes), EVIDENCE, PROFILES["finance"])
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


def test_a_quote_is_found_in_an_answer_that_escapes_its_characters_as_json_may() -> None:
    evidence = Evidence((NumberedSource(1, "a", "a", None, ('Die Bank "Älv" schuldet 7.',)),))
    answer = answered(judged((1, 'Die Bank "Älv" schuldet 7.')), evidence, PROFILES["finance"])
    (citation,) = answer.citations
    assert citation.support is Support.EXACT
    assert answer.text[citation.start : citation.end] == r"Die Bank \"\u00c4lv\" schuldet 7."


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
    answer = answered(judged(evidence=[*chain, {"source": -1, "quote": ""}]), EVIDENCE, PROFILES["finance"])
    assert [one.support for one in answer.citations] == [Support.EXACT] + [Support.DANGLING] * 9
    assert (answer.supported_share, answer.notes) == (0.1, ())


def test_a_quote_that_holds_an_address_is_compared_without_it() -> None:
    evidence = Evidence((NumberedSource(1, "a", "a", None, ("Rates are at https://a.example/x as of May 2020.",)),))
    quote = "Rates are at https://a.example/x as of May 2020."
    answer = answered(judged((1, quote)), evidence, PROFILES["finance"])
    (citation,) = answer.citations
    assert citation.support is Support.EXACT
    assert answer.text[citation.start : citation.end] == "Rates are at (link removed) as of May 2020."


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("The bank owes 3.5 billion crowns.", Support.EXACT),
        ("Its debt is large.", Support.EXACT),
        ("The bank does not owe 3.5 billion crowns.", Support.UNSUPPORTED),
        ("The bank owes 35 billion crowns.", Support.UNSUPPORTED),
        (["no text"], Support.EXACT),
    ],
)
def test_a_claim_that_its_source_denies_is_unsupported_even_if_its_quote_is_right(
    claim: object, expected: Support
) -> None:
    item = {"claim": claim, "source": 2, "quote": "The bank owes 3.5 billion crowns."}
    [citation] = answered(judged(evidence=[item]), EVIDENCE, PROFILES["finance"]).citations
    assert citation.support is expected


def test_the_same_quote_twice_is_found_at_both_places_and_not_in_a_claim_that_says_the_same() -> None:
    quote = "The bank owes 3.5 billion crowns."
    text = judged({"claim": quote, "source": 2, "quote": quote}, {"claim": quote, "source": 2, "quote": quote})
    answer = answered(text, EVIDENCE, PROFILES["finance"])
    places = [at for at in range(len(text)) if text.startswith(quote, at)]
    assert [one.start for one in answer.citations] == [places[1], places[3]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (judged(), "the chain is empty"),
        ('{"summary": "cut off at max_tok', "it is not the JSON of its profile"),
        ("[" * 100_000, "it is not the JSON of its profile"),
        ("7", "it is not the JSON of its profile"),
    ],
)
def test_a_score_without_evidence_says_so_in_a_note(text: str, why: str) -> None:
    answer = answered(text, EVIDENCE, PROFILES["finance"])
    assert (answer.citations, answer.sources) == ((), ())
    assert answer.notes == (f"the answer names no evidence: {why}",)


def test_evidence_that_no_source_supports_gets_a_note() -> None:
    answer = answered(judged((1, "Sugar is made from beets and from cane alike.")), EVIDENCE, PROFILES["finance"])
    assert [one.support for one in answer.citations] == [Support.UNSUPPORTED]
    assert answer.notes == ("the answer rests on no source: no source supports any item of its evidence",)


# -- without a source ----------------------------------------------------------------------------------------------

NOTHING = Evidence((), question="How much does the bank owe?")
NOTICE = "No source could be used: this answer rests on no source."


def test_an_answer_for_which_no_source_could_be_used_says_so_first_and_its_spans_stay() -> None:
    answer = answered(" It owes 7 crowns [1].\n", NOTHING, PROFILES["default"])
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


def test_an_answer_that_no_source_supports_is_given_with_a_note() -> None:
    answer = answered("Sugar is sweet.", EVIDENCE, PROFILES["default"])
    assert answer.text == "Sugar is sweet."
    assert answer.notes == ("the answer rests on no source: no source supports any of its sentences",)
