"""Choosing passages: rank, excerpts, tokens, and the newest first."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import Job, Message
from workers.enrichment.choosing.rank import (
    RRF_K,
    WORDS_WEIGHT,
    Budget,
    Ranking,
    estimated_tokens,
    fused,
    room_for_sources,
    split,
    terms,
    weights,
)
from workers.enrichment.enrich import beginnings, within


def rank(
    question: str, documents: Sequence[Sequence[str]], budget: Budget, size: int, by_meaning: Sequence[int] = ()
) -> list[list[str]]:
    """The chosen passages of each document."""
    return Ranking(question, documents, size).chosen(budget, by_meaning)


# -- rank ------------------------------------------------------------------------------------------------------------
BRIDGE = "The Halvorsen bridge opened in 1987. It carries the coast road."
CHEESE = "Bramwick cheese ripens for fourteen weeks. Its rind is washed with cider."


TOWER = "The tower is 58 metres high."
CHINESE = ("奶酪要熟成十四周。", "这座大桥于一九八七年开通。")
WAS_OPENED = BRIDGE.replace("opened", "was opened")
COMMENT = f"{BRIDGE} So says a comment on another page."


@pytest.mark.parametrize(
    ("question", "documents", "budget", "chosen"),
    [
        # The document that bears on the question gets the budget; titles count for their passages.
        ("When did the Halvorsen bridge open?", [("", CHEESE), ("", BRIDGE)], len(BRIDGE), [[], [BRIDGE]]),
        ("Ostermark", [("", CHEESE), ("Ostermark", TOWER)], 30, [[], [TOWER]]),
        ("大桥何时开通", [("", text) for text in CHINESE], 15, [[], [CHINESE[1]]]),
        # A question that matches nothing gets the beginning of each page.
        ("Summarise this.", [("", BRIDGE), ("", CHEESE)], 1000, [[BRIDGE], [CHEESE]]),
        # A page that copies another gets nothing.
        ("Halvorsen bridge", [("", BRIDGE), ("", f"{BRIDGE} "), ("", CHEESE)], 1000, [[BRIDGE], [], [CHEESE]]),
        ("Halvorsen bridge", [("", BRIDGE), ("", WAS_OPENED)], 1000, [[BRIDGE], [WAS_OPENED]]),
        # A page counts outside of its main text too, but less; a menu without a word of the question is no passage.
        ("Halvorsen bridge?", [("", CHEESE, COMMENT), ("", f"{BRIDGE} It says.")], len(COMMENT), None),
        ("Halvorsen bridge?", [("", CHEESE, COMMENT)], len(COMMENT), [[COMMENT]]),
        ("bridge", [("", CHEESE, "Home. Contact. Imprint.")], 1000, [[CHEESE]]),
        ("", [], 100, []),
        ("", [("", "")], 100, [[]]),
    ],
)
def test_the_passages_that_bear_on_the_question_are_chosen(
    question: str, documents: list[Any], budget: int, chosen: list[list[str]] | None
) -> None:
    found = rank(question, documents, Budget(budget), 600)
    assert found[0] == [] if chosen is None else found == chosen


def test_a_page_that_repeats_the_question_does_not_crowd_out_another() -> None:
    long = " ".join(f"The bridge number {n} is a bridge of stone." for n in range(16))
    other = f"A bridge of wood. {'It leads to the mill. ' * 7}".strip()
    chosen = rank("bridge", [("", long), ("", other)], Budget(600), 200)
    assert chosen[1] == [other]
    assert len(chosen[0]) == 2


def test_a_second_passage_that_answers_goes_before_pages_that_hardly_bear_on_the_question() -> None:
    about = "The Halvorsen bridge, its bridge keeper and its bridge toll are old. "
    page = f"{about * 3}{'Rain fell. ' * 30}The Halvorsen bridge was painted by Ines Toller."
    others = [("", f"Town number {n} has a bridge. {'Wind blew there. ' * 9}") for n in range(7)]
    (passages, *_) = rank("Who painted the Halvorsen bridge and its toll?", [("", page), *others], Budget(900), 220)
    assert "Ines Toller" in " ".join(passages)


def test_the_best_passage_of_a_long_page_is_found_wherever_it_stands() -> None:
    filler = " ".join(f"Paragraph {n} tells of gardens and of rain." for n in range(300))
    text = f"{filler} The captain of the Astrelle is Maud Pettigrew. {filler}"
    (passages,) = rank("Who is the captain of the Astrelle?", [("", text)], Budget(600), 300)
    assert "Maud Pettigrew" in " ".join(passages)


def test_passages_keep_the_order_of_the_page() -> None:
    text = "Alpha is a bridge. " + "Rain fell. " * 60 + "Beta is a bridge, a bridge, a bridge."
    (passages,) = rank("bridge", [("", text)], Budget(10_000), 100)
    assert passages[0].startswith("Alpha")
    assert passages[-1].endswith("a bridge.")


def test_words_match_in_other_forms_and_scripts_without_spaces_are_taken_in_pairs() -> None:
    assert terms("bridges opened") == terms("Bridge OPENING")
    assert terms("大桥开通") == ["大桥", "桥开", "开通"]
    assert terms("ＡＢＣ ﬁne") == terms("abc fine")  # noqa: RUF001 - full-width letters


def test_a_rare_term_weighs_more_than_a_common_one() -> None:
    passages = [Counter(["common", "rare"]), Counter(["common", "other"]), Counter(["common", "third"])]
    common, rare = (weights(term, passages)[0] for term in ("common", "rare"))
    assert rare > common > 0


def test_question_words_weigh_nothing_and_the_name_of_the_organisation_does() -> None:
    passages = [Counter(terms("Who knows what it does, and how?")), Counter(terms("The WHO met in Oslo."))]
    assert weights("Who did what, where and how does it end? Why?", passages)[1] == 0
    assert weights("What does the WHO say?", passages)[1] > weights("What does the who say?", passages)[1] > 0


def test_repeating_a_term_soon_adds_no_weight() -> None:
    once, often = weights("spam", [Counter({"spam": 1, "a": 99}), Counter({"spam": 50, "a": 50})])
    assert once < often < 3 * once


def test_passages_overlap_by_whole_sentences() -> None:
    sentences = [f"Sentence number {n:02} stands here." for n in range(12)]
    passages = split(" ".join(sentences), 150)
    assert all(later.split(". ")[0].rstrip(".") in earlier for earlier, later in pairwise(passages))
    assert all(any(sentence in passage for passage in passages) for sentence in sentences)


def test_a_number_with_a_point_is_not_cut() -> None:
    assert split("It weighs 3.14 tonnes.", 600) == ["It weighs 3.14 tonnes."]


@given(st.text(alphabet="ab. !\n?。大", max_size=400), st.integers(5, 60))
def test_no_text_is_lost_and_no_passage_is_much_too_long(text: str, size: int) -> None:
    passages = split(text, size)
    assert all(len(passage) <= 2 * size for passage in passages)
    everything = "".join("".join(passage.split()) for passage in passages)
    assert set("".join(text.split())) <= set(everything)
    assert len(everything) >= len("".join(text.split()))


@pytest.mark.parametrize("budget", [0, 10, 100])
def test_the_budget_holds(budget: int) -> None:
    chosen = rank("bridge", [("", BRIDGE * 20), ("", CHEESE * 20)], Budget(budget), 60)
    assert sum(len(passage) for passages in chosen for passage in passages) <= budget


def test_passages_that_overlap_are_not_taken_for_copies() -> None:
    text = " ".join(f"Bridge number {n} of {n * 7} was built in {1800 + n} by {n * 13} masons." for n in range(20))
    (passages,) = rank("bridge", [("", text)], Budget(10_000), 200)
    assert all(f"Bridge number {n} " in " ".join(passages) for n in range(20))


@pytest.mark.parametrize("tokens", [0, 20, 60, 200])
def test_a_budget_of_tokens_includes_the_wording_around_each_source(tokens: int) -> None:
    texts = [" ".join(f"The bridge {n} of {name} is long." for n in range(9)) for name in ("Tarnby", "大桥", "Oslo")]
    chosen = rank("bridge", [("", text) for text in texts], Budget(10_000, tokens, 10), 100)
    quoted = [passage for passages in chosen for passage in passages]
    assert sum(map(estimated_tokens, quoted)) + 10 * sum(map(bool, chosen)) <= tokens


# -- two orders --------------------------------------------------------------------
def scored(by_words: int, by_meaning: int) -> float:
    return WORDS_WEIGHT / (RRF_K + by_words) + 1 / (RRF_K + by_meaning)


def test_a_passage_is_scored_by_its_places_in_both_orders() -> None:
    assert fused([3.0, 2.0, 0.0], [2, 1, 0]) == pytest.approx([scored(1, 3), scored(2, 2), scored(3, 1)])


def test_equal_weights_share_a_place_and_passages_that_no_model_compared_rank_after_the_others() -> None:
    both = [scored(1, 2), scored(2, 3), scored(2, 1), scored(4, 3)]
    assert fused([5.0, 1.0, 1.0, 0.0], [2, 0]) == pytest.approx(both)


SENTENCES = (
    "Cats sleep on the roof in summer.",
    "Dogs bark at the gate all day.",
    "Hens lay eggs behind the stable.",
    "Physicians are on duty at night.",
)


def test_a_passage_that_only_a_model_finds_is_chosen_before_one_that_nothing_finds() -> None:
    ranking = Ranking("Which dogs need a doctor?", [("", " ".join(SENTENCES))], 35)
    cats, dogs, hens, physicians = range(4)
    assert ranking.chosen(Budget(65)) == [list(SENTENCES[:2])]
    assert ranking.chosen(Budget(65), [physicians, dogs, hens, cats]) == [[SENTENCES[dogs], SENTENCES[physicians]]]
    assert ranking.chosen(Budget(65), [dogs, hens, cats, physicians]) == [[SENTENCES[dogs], SENTENCES[hens]]]


def test_candidates_are_the_likeliest_by_words_and_have_their_titles() -> None:
    ranking = Ranking("bridge", [("Cheese", CHEESE), ("Roads", BRIDGE)], 600)
    assert ranking.candidates(1) == [(1, "Roads", BRIDGE)]
    assert ranking.candidates(9) == [(1, "Roads", BRIDGE), (0, "Cheese", CHEESE)]
    assert ranking.candidates(0) == []


@given(st.data())
def test_the_model_cannot_place_a_fourth_passage_before_the_first_one_of_an_equally_long_document(
    data: st.DataObject,
) -> None:
    texts = [" ".join(f"The {word} number {n} is long." for n in range(9)) for word in ("bridge", "harbor")]
    # All passages have the same length, so that at any moment each of them fits or none.
    ranking = Ranking("bridge harbor", [("", text) for text in texts], 30)
    candidates = [number for number, _, _ in ranking.candidates(data.draw(st.integers(0, 18)))]
    order = data.draw(st.permutations(candidates))
    budget = data.draw(st.integers(0, 600))
    chosen = ranking.chosen(Budget(budget), order)
    assert sum(len(passage) for passages in chosen for passage in passages) <= budget
    # A document's fourth passage is ranked 9 places lower, so the other document's first passage comes before it.
    assert max(map(len, chosen)) < 4 or min(map(len, chosen)) >= 1


# -- excerpts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sizes", "chars", "left"),
    [
        ((10, 20, 30), 60, (10, 20, 30)),
        ((10, 20, 30), 50, (10, 20, 20)),
        ((30, 30, 30), 60, (20, 20, 20)),
        ((5, 100, 100), 65, (5, 30, 30)),
        ((100,), 7, (7,)),
        ((), 10, ()),
        ((0, 0), 0, (0, 0)),
    ],
)
def test_the_longest_texts_are_cut_alike(sizes: tuple[int, ...], chars: int, left: tuple[int, ...]) -> None:
    assert tuple(len(text) for text in within(["x" * size for size in sizes], chars)) == left


@given(st.lists(st.text(max_size=40), max_size=8), st.integers(0, 200))
def test_the_ranked_texts_are_no_longer_than_allowed_and_begin_as_the_given_ones(texts: list[str], chars: int) -> None:
    cut = within(texts, chars)
    assert all(text.startswith(part) for text, part in zip(texts, cut, strict=True))
    assert sum(map(len, cut)) <= chars
    assert cut == texts or sum(map(len, cut)) > chars - len(texts)


def test_each_text_gives_its_beginning_in_whole_words() -> None:
    texts = ["The Halvorsen\n bridge opened in 1987.", "", "Cheese ripens.", "Incomprehensibilities"]
    chosen = beginnings(texts, Budget(80), 600)
    assert chosen == [["The Halvorsen bridge"], [], ["Cheese ripens."], ["Incomprehensibilitie"]]


@pytest.mark.parametrize("tokens", [0, 20, 60, 200])
def test_beginnings_keep_the_budget_of_tokens(tokens: int) -> None:
    texts = ["The bridge is long. " * 40, "大桥很长。" * 40, "Another one. " * 40]
    chosen = beginnings(texts, Budget(10_000, tokens, 10), 100)
    quoted = [passage for passages in chosen for passage in passages]
    assert sum(map(estimated_tokens, quoted)) + 10 * len(quoted) <= tokens
    assert bool(quoted) == (tokens >= 60)


# -- tokens ----------------------------------------------------------------------------------------------------------
QUESTION = "Which bridge opened in 1987?"


def job(**fields: object) -> Job:
    return Job.model_validate({"prompt": QUESTION, "max_tokens": 100, **fields})


def test_without_a_window_there_is_no_limit() -> None:
    assert room_for_sources(job()) is None


def test_the_smaller_of_both_windows_counts() -> None:
    narrow = room_for_sources(job(context_window=1000))
    assert narrow is not None
    assert 0 < narrow < 900
    assert room_for_sources(job(), context_tokens=1000) == narrow
    assert room_for_sources(job(context_window=1000), context_tokens=4000) == narrow
    assert room_for_sources(job(context_window=4000), context_tokens=1000) == narrow


def test_the_answer_the_instructions_and_each_message_take_their_part() -> None:
    plain = room_for_sources(job(), context_tokens=1000)
    assert plain is not None
    assert room_for_sources(job(max_tokens=150), context_tokens=1000) == plain - 50
    assert room_for_sources(job(), "Be brief.", context_tokens=1000) == plain - 4
    turns = [Message(role="user", content=QUESTION), Message(role="assistant", content="Which?")]
    spoken = room_for_sources(job(prompt=None, messages=turns), context_tokens=1000)
    assert spoken is not None
    assert spoken < plain - 4


def test_a_question_that_fills_the_window_leaves_no_room() -> None:
    assert room_for_sources(job(prompt="word " * 1000), context_tokens=1000) == 0


def test_figures_and_marks_count_one_by_one_as_models_read_them() -> None:
    """An earlier version estimated this table of figures at 24 tokens, less than half of Gemma's 59."""
    assert estimated_tokens("Revenue 12,345.67 | 8,910.11 | 2023-11-04 | 45.2% | 1,002,003 | (17.8)") >= 55
    assert estimated_tokens("The bridge carries the road over the river. ") == 15 + 1
    assert estimated_tokens("The Halvorsen bridge opened in 1987.") >= 9


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a few\nwords", 4), ("1987", 4), ("né", 2), ("桥 12", 4), ("{a}", 3), ("\ud800", 1), ("东海大桥", 4)],
)
def test_letters_and_blanks_share_tokens_and_all_other_characters_have_their_own(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


def test_an_estimate_makes_no_object_for_each_digit_of_a_long_text() -> None:
    """The estimate is made on the event loop, and a payload of 8 MiB of digits must not block the loop."""
    text = "1" * 1_000_000
    tracemalloc.start()
    try:
        assert estimated_tokens(text) == len(text)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()
