"""The source that supports each sentence of an answer."""

from __future__ import annotations

import pytest

from schemas.result import Citation, Quote, Support
from workers.enrichment.answering.answer import answered
from workers.enrichment.answering.cite import MAX_ALIGNED, cited, supported_share
from workers.enrichment.answering.profile import Profile
from workers.enrichment.evidence import Evidence, NumberedSource

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
        ("The Halvorsen bridge in Tarnby opened in 1988 [1].", Support.UNSUPPORTED),
        ("Penguins are birds that live in the far south [1].", Support.UNSUPPORTED),
        ("The Halvorsen bridge in Tarnby never opened [1].", Support.UNSUPPORTED),
        ("It does contain salt [2].", Support.UNSUPPORTED),
        ("It does not contain salt [2].", Support.EXACT),
        ("The Halvorsen bridge opened in 1987 [9].", Support.DANGLING),
        ('On the bridge: "carries the coast road over the river Vesla" [1].', Support.EXACT),
        ('The page says of the bridge that it "carries the main coast road over the river Vesla" [1].', Support.FUZZY),
        ('The bridge over the river Vesla "carries Tarnby and the Halvorsen coast" [1].', Support.UNSUPPORTED),
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


@pytest.mark.parametrize(
    "mark",
    ["[1][2]", "[1, 2]", "[1;2]", "[Source 1] [source 2]", "[Sources 1, 2]", "[webpage 1] [Webpage 2]",
     "[citation:1][citation: 2]", "[^1][^2]", "[^1, ^2]", "【1】【2】", "【1†source】【2†L1-L3】", "【1:0†x】 【2】"],
)  # fmt: skip
def test_several_sources_may_support_a_sentence(mark: str) -> None:
    assert [source for source, _ in levels(f"The river is long {mark}.")] == [BRIDGE.id, CHEESE.id]


def test_a_source_that_is_cited_and_does_not_support_is_not_used() -> None:
    _, used, citations = cited("Penguins live there [1].", BOTH)
    assert used == []
    assert [one.support for one in citations] == [Support.UNSUPPORTED]


def test_an_answer_without_marks_is_attributed_to_the_source_that_supports_it() -> None:
    quote = Quote(exact="1987", prefix="rsen bridge in Tarnby opened in ", suffix=". It carries the coast road over")
    assert cited("1987", BOTH) == (
        "1987",
        [BRIDGE.id],
        [Citation(start=0, end=4, source=BRIDGE.id, support=Support.EXACT, quote=quote)],
    )


def test_the_other_sentences_are_attributed_too_if_no_citation_mark_is_valid() -> None:
    answer = "Penguins live in the south [1]. The Halvorsen bridge in Tarnby opened in 1987. The river is long [9]."
    assert levels(answer) == [(BRIDGE.id, Support.UNSUPPORTED), (BRIDGE.id, Support.EXACT), ("[9]", Support.DANGLING)]
    assert cited(answer, BOTH)[1] == [BRIDGE.id]


def test_the_other_sentences_are_not_attributed_if_a_citation_mark_is_valid() -> None:
    answer = "Cheese ripens for 14 weeks [2]. The Halvorsen bridge in Tarnby opened in 1987."
    assert levels(answer) == [(CHEESE.id, Support.EXACT)]


def test_an_answer_that_no_source_supports_cites_nothing() -> None:
    assert cited("I do not know, sorry about that.", BOTH) == ("I do not know, sorry about that.", [], [])


def test_an_index_in_code_is_no_citation() -> None:
    assert levels("Use `a[1]` or\n```\nb[2]\n```\n") == []


@pytest.mark.parametrize("text", ["", " ", "[1]", "...", "\n\n"])
def test_an_answer_without_words_is_survived(text: str) -> None:
    assert [level for _, level in levels(text)] in ([], [Support.UNSUPPORTED])


@pytest.mark.parametrize(
    "listed", ["[0, 1]", "[18, 27]", "[0]", "CI [1, 2]", "range = [1, 2]", "items[0]", "[3; 4; 5]"]
)
def test_an_interval_or_an_index_is_no_citation(listed: str) -> None:
    said = f"Cheese ripens for 14 weeks in cellars, {listed} [2]."
    assert [source for source, _ in levels(said)] == [CHEESE.id]
    assert levels(f"The values lie in {listed} there.") == []


def test_a_list_cites_the_number_that_a_source_has_and_its_other_numbers_dangle() -> None:
    assert levels("The Halvorsen bridge opened in 1987 [1, 9].") == [
        (BRIDGE.id, Support.FUZZY),
        ("[9]", Support.DANGLING),
    ]


def test_a_very_long_answer_is_compared_up_to_a_bound() -> None:
    text = "The bridge of Tarnby is long [1]. " * 3000
    assert len(cited(text, BOTH)[2]) == 500


def test_sentences_are_aligned_with_passages_up_to_a_bound() -> None:
    """Without a bound, a long answer in its sources' words would delay all others.

    Sentences beyond the bound are compared only by their words.
    """
    spoken = [f"word{letter}{other}" for letter in "abcdefghijklmnopqrst" for other in "abcdefghijklmnopqrst"]
    page = NumberedSource(1, "a", "a", None, (" ".join(spoken),))
    sentence = " ".join([*spoken[:18], "moreover", *spoken[19:25]]) + " [1]. "
    _, _, citations = cited(sentence * 100, Evidence((page,)))
    within = MAX_ALIGNED // (25 * len(spoken))
    assert [one.support for one in citations] == [Support.FUZZY] * within + [Support.LEXICAL] * (100 - within)


def test_an_address_is_no_word_of_a_sentence() -> None:
    text, _, (citation,) = cited("See https://b.example/more and https://c.example/elsewhere [2].", BOTH)
    assert (text, citation.support) == ("See (link removed) and (link removed) [2].", Support.EXACT)


def test_nothing_is_cited_without_sources() -> None:
    assert cited("It opened in 1987 [1].", Evidence(()))[1] == []


def test_spans_fit_the_text_that_is_returned() -> None:
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
        ("", 1.0),
        ("Yes, it is. 1987 [1].", 0.5),
    ],
)
def test_the_supported_share_is_a_share_of_the_sentences(text: str, share: float) -> None:
    answer, _, citations = cited(text, BOTH)
    assert supported_share(answer, citations) == share


def test_confidence_is_halved_where_nothing_is_supported() -> None:
    assert answered("Penguins are birds.", BOTH, Profile(name="plain")).lowered(0.8) == 0.4
    assert answered("It opened in 1987 [1].", BOTH, Profile(name="plain")).lowered(0.8) == 0.8
    assert answered("It opened in 1987 [1].", Evidence(()), Profile(name="plain")).lowered(0.8) == 0.4
    assert answered("Penguins are birds.", BOTH, Profile(name="plain")).lowered(None) is None
