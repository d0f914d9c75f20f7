"""The choice of passages for a question."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.enrichment.choosing.rank import RRF_K, WORDS_WEIGHT, Budget, Ranking, fused, rank, split, terms, weights
from workers.enrichment.choosing.tokens import estimated_tokens

BRIDGE = "The Halvorsen bridge opened in 1987. It carries the coast road."
CHEESE = "Bramwick cheese ripens for fourteen weeks. Its rind is washed with cider."


def test_the_document_that_bears_on_the_question_gets_the_budget() -> None:
    chosen = rank("When did the Halvorsen bridge open?", [("", CHEESE), ("", BRIDGE)], Budget(len(BRIDGE)), 600)
    assert chosen == [[], [BRIDGE]]


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


def test_a_question_that_matches_nothing_gets_the_beginning_of_each_page() -> None:
    assert rank("Summarise this.", [("", BRIDGE), ("", CHEESE)], Budget(1000), 600) == [[BRIDGE], [CHEESE]]


def test_a_title_counts_for_its_passages() -> None:
    chosen = rank("Ostermark", [("", CHEESE), ("Ostermark", "The tower is 58 metres high.")], Budget(30), 600)
    assert chosen == [[], ["The tower is 58 metres high."]]


def test_words_match_in_other_forms() -> None:
    assert terms("bridges opened") == terms("Bridge OPENING")


def test_scripts_without_spaces_are_taken_in_pairs() -> None:
    assert terms("大桥开通") == ["大桥", "桥开", "开通"]
    chosen = rank("大桥何时开通", [("", "奶酪要熟成十四周。"), ("", "这座大桥于一九八七年开通。")], Budget(15), 600)
    assert chosen == [[], ["这座大桥于一九八七年开通。"]]


def test_compatibility_forms_are_the_same_word() -> None:
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


def test_no_document_gives_no_passage() -> None:
    assert rank("", [], Budget(100), 100) == []
    assert rank("", [("", "")], Budget(100), 100) == [[]]


def test_a_page_that_copies_another_gets_nothing() -> None:
    copy = BRIDGE.replace("opened", "was opened")
    assert rank("Halvorsen bridge", [("", BRIDGE), ("", f"{BRIDGE} "), ("", CHEESE)], Budget(1000), 600) == [
        [BRIDGE],
        [],
        [CHEESE],
    ]
    assert rank("Halvorsen bridge", [("", BRIDGE), ("", copy)], Budget(1000), 600)[1] == [copy]


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


def test_tokens_are_estimated_on_the_safe_side() -> None:
    assert estimated_tokens("") == 0
    assert estimated_tokens("The Halvorsen bridge opened in 1987.") >= 9
    assert estimated_tokens("大桥开通") == 4


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


def test_a_page_counts_outside_of_its_main_text_too_but_less() -> None:
    question, comment = "When did the Halvorsen bridge open?", f"{BRIDGE} So says a comment on another page."
    documents = [("", CHEESE, comment), ("", f"{BRIDGE} So says the article.")]
    budget = Budget(len(comment))
    assert rank(question, documents, budget, 600)[0] == []
    assert rank(question, [("", CHEESE, comment)], Budget(len(comment)), 600) == [[comment]]


def test_a_menu_without_a_word_of_the_question_is_no_passage() -> None:
    assert rank("bridge", [("", CHEESE, "Home. Contact. Imprint.")], Budget(1000), 600) == [[CHEESE]]
