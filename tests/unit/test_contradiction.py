"""A source does not support a sentence that it denies, whatever words they share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.citations import TABLES, Pair, load_pairs
from schemas.result import Support
from workers.enrichment.answering import contradiction
from workers.enrichment.answering.answer import Unsupported, answered
from workers.enrichment.answering.cite import BEARING, cited
from workers.enrichment.answering.clauses import Token, clauses
from workers.enrichment.answering.profile import Profiles
from workers.enrichment.answering.wording import is_other_half, other_half
from workers.enrichment.evidence import Evidence, NumberedSource

MADE_WITH, *LATER = map(load_pairs, TABLES)

_SUBJECTS = ["Aspirin", "The old bridge", "Kestor Bank", "The driver", "A vaccine"]
_DEEDS = ["lowered the risk", "carried coal", "bought the mill", "passed the test", "reached 40 percent"]
_PLACES = ["in adults", "in 1987", "near Tarnby", "after 12 weeks", "during the siege"]
_STATEMENTS = st.builds(
    "{} {} {}.".format, st.sampled_from(_SUBJECTS), st.sampled_from(_DEEDS), st.sampled_from(_PLACES)
)
_NEGATED = st.builds(
    "{} {} {} {}.".format,
    st.sampled_from(_SUBJECTS),
    st.sampled_from(["never", "has not", "hasn't", "failed to have"]),
    st.sampled_from(_DEEDS),
    st.sampled_from(_PLACES),
)


def support(sentence: str, *passages: str) -> Support:
    source = NumberedSource(1, "https://a.example/", "https://a.example/", None, passages)
    _, _, (citation, *_) = cited(f"{sentence.rstrip('.')} [1].", Evidence((source,)))
    return citation.support


def test_the_tables_have_the_stated_numbers_of_pairs() -> None:
    assert (len(MADE_WITH), sum(pair.holds for pair in MADE_WITH)) == (60, 30)
    assert list(map(len, LATER)) == [24, 40, 60, 60, 60, 60, 60]
    pairs = [*MADE_WITH, *chain(*LATER)]
    assert {pair.domain for pair in pairs} > {"medicine", "finance", "history", "engineering", "law", "sport"}
    assert {pair.language for pair in pairs} == {"en", "de", "fr", "es"}
    assert len({(pair.passage, pair.sentence) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("pair", MADE_WITH, ids=lambda pair: pair.sentence)
def test_a_contradiction_is_not_supported_and_a_true_sentence_is(pair: Pair) -> None:
    assert pair.is_judged_right, pair.support


@pytest.mark.parametrize(
    ("pairs", "most", "lost"),
    list(zip(LATER, (1, 2, 0, 1, 2, 6, 14), (0, 1, 0, 1, 2, 1, 1), strict=True)),
    ids=TABLES[1:],
)
def test_of_a_later_table_few_contradictions_pass_and_few_true_sentences_are_lost(
    pairs: list[Pair], most: int, lost: int
) -> None:
    wrong = [pair for pair in pairs if not pair.is_judged_right]
    assert sum(not pair.holds for pair in wrong) <= most, wrong
    assert sum(pair.holds for pair in wrong) <= lost, wrong


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("The tower was built by the town and later bought by the monks",
         "The tower was built by the monks and later bought by the town."),
        ("The old lamps use a third of the power of the new lamps",
         "The new lamps use a third of the power of the old lamps."),
        ("Doctors washed before 71 percent of contacts",
         "Nurses washed before 71 percent of contacts and doctors before 48 percent."),
        ("Sick leave fell by 14 days with pilates",
         "Sick leave fell by 14 days with running and by 5 days with pilates."),
        ("Osby Mills was cleared of the same charge",
         "Osby Mills had booked sales too early. Its rival Brevik Foods was cleared of the same charge."),
        ("The bank lost customers", "Analysts had expected the bank to lose customers."),
        ("The ear plugs were useful", "The ear plugs were useless."),
        ("The wraps eased pain for six days", "The wraps eased pain for six hours."),
        ("The syrup reduced fever in children", "The syrup reduced cough in children, but it did not reduce fever."),
        ("Members without a job pay a fee", "Members without a job pay no fee."),
    ],
)  # fmt: skip
def test_a_sentence_in_a_source_s_words_is_compared_with_all_of_those_words(sentence: str, passage: str) -> None:
    assert support(sentence, passage) is Support.UNSUPPORTED
    for told in passage.rstrip(".").split(". "):
        assert support(told, passage) in BEARING


def test_the_second_half_of_a_shortened_pair_supports_its_own_number() -> None:
    passage = "Nurses washed before 71 percent of contacts and doctors before 48 percent."
    assert support("Doctors washed before 48 percent of contacts", passage) in BEARING
    assert support("Nurses washed before 48 percent of contacts", passage) is Support.UNSUPPORTED


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("Salt and pepper were sold in Norway and in Sweden", "Pepper and salt were sold in Sweden and in Norway."),
        ("The strike began in May", "The strike began in May."),
        ("Vinter delivered 81,000 cars", "Buyers trust Vinter. Vinter Motors delivered 81,000 cars."),
        ("Orders fell by 22 percent", "Orders at Sundby Steel fell by 22 percent."),
        ("Brevik will pay a dividend", "Brevik sells salmon. The company will pay a dividend."),
    ],
)
def test_another_order_in_a_list_or_a_shorter_name_is_no_contradiction(sentence: str, passage: str) -> None:
    assert support(sentence, passage) in BEARING


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("Adda Lind is a landscape painter", "Adda Maria Lind (born 3 May 1971) is an American landscape painter."),
        ("A woman is squeezing a lemon", "A lemon is being squeezed by a woman."),
        ("Someone is slicing an onion", "Somebody is slicing an onion."),
        ("Some people are sitting on a low wall", "Two people are sitting on a low wall."),
        ("Two girls are sitting on the ground", "Two young girls are sitting on the ground."),
        ("The Chinese council opened the museum on Sept. 4", "The council of China opened the museum on September 4."),
    ],
)
def test_a_passive_a_parenthesis_or_another_first_word_takes_no_support_away(sentence: str, passage: str) -> None:
    assert support(sentence, passage) in BEARING


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
    assert citation.support is Support.LEXICAL


@given(st.text(alphabet="ab1 ,.()Bé\n", max_size=80))
def test_each_word_is_in_one_clause_whatever_the_parentheses(text: str) -> None:
    def counted(written: str) -> Counter[str]:
        return Counter(token.text for clause in clauses(written, frozenset("ab")) for token in clause.tokens)

    assert counted(text) == counted(re.sub("[()]", ";", text))


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("Coffee was associated with stroke", "Coffee was not associated with stroke."),
        ("Velnacept was better than torsumab", "Torsumab was better than velnacept."),
        ("The vaccine is safe in infants", "The vaccine is unsafe in infants."),
    ],
)
def test_there_is_no_medical_answer_that_its_source_denies(sentence: str, passage: str) -> None:
    source = NumberedSource(1, "pmid:1", "https://a.example/", None, (passage,))
    with pytest.raises(Unsupported):
        answered(f"{sentence} [1].", Evidence((source,)), Profiles.load()["medical"])


def test_an_opposite_negated_is_no_contradiction() -> None:
    assert support("Grain prices did not rise in Tarnby in 2019", "Grain prices fell in Tarnby in 2019.") in BEARING
    assert (
        support(
            "The old road to Vey is not unsafe for young children", "The old road to Vey is safe for young children."
        )
        in BEARING
    )


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("Den Fluss überquert die Brücke seit dem Sommer", "Die Brücke überquert den Fluss seit dem Sommer."),
        ("Die Mühle kaufte Norvik im Jahr 1987", "Norvik kaufte die Mühle im Jahr 1987."),
        ("The patch for the roof arrived in May", "The dispatch of the patch for the roof arrived in May."),
    ],
)
def test_the_free_order_of_german_and_words_that_only_look_negated_take_no_support_away(
    sentence: str, passage: str
) -> None:
    assert support(sentence, passage) in BEARING


def test_the_phrases_not_only_and_no_fewer_than_do_not_negate() -> None:
    assert support("The mill ground wheat", "The mill ground not only wheat, but also rye.") in BEARING
    assert support("The mill had 40 stones", "The mill had no fewer than 40 stones.") in BEARING


def test_a_source_that_asserts_and_denies_for_different_cases_supports_each_for_its_own_case() -> None:
    passage = "In men, coffee was associated with stroke. In women, coffee was not associated with stroke."
    assert support("Coffee was associated with stroke in men", passage) in BEARING
    assert support("Coffee was not associated with stroke in women", passage) in BEARING


@given(st.lists(_STATEMENTS | _NEGATED, min_size=1, max_size=6, unique=True), st.data())
def test_a_sentence_of_a_source_is_supported_as_it_stands(passage: list[str], data: st.DataObject) -> None:
    assert support(data.draw(st.sampled_from(passage)), " ".join(passage)) is Support.EXACT


@given(st.sampled_from(_SUBJECTS), st.sampled_from(_DEEDS), st.sampled_from(_PLACES), st.booleans())
def test_a_statement_and_its_negation_never_support_each_other(subject: str, deed: str, place: str, turn: bool) -> None:
    plain, negated = f"{subject} {deed} {place}.", f"{subject} never {deed} {place}."
    said, told = (negated, plain) if turn else (plain, negated)
    assert support(said, told) is Support.UNSUPPORTED


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_survived(sentence: str, passage: str) -> None:
    cited(f"{sentence} [1].", Evidence((NumberedSource(1, "a", "a", None, (passage, sentence)),)))


@pytest.mark.parametrize(
    "part", ["not ", "bridge, not open, ", "the bridge and the river and not ", "a-", "a", "from 3 to 4 ", "A b "]
)
def test_a_long_answer_is_judged(part: str) -> None:
    """Each of these parts once made a pattern or a loop slow; with a quadratic cost this test takes minutes."""
    assert support(part * (200_000 // len(part)), part * (8000 // len(part))) in Support


def test_a_sentence_beyond_the_bound_is_not_read_again_for_each_pair_of_its_numbers() -> None:
    common = frozenset({"with", "the", "and"})

    def tokens(text: str) -> list[Token]:
        return [token for clause in clauses(text, common) for token in clause.tokens]

    told = "38 minutes with Vey and 9 minutes with Sund"
    assert is_other_half(tokens("9 minutes with Sund"), tokens(told))
    assert other_half(tokens("9 minutes with Vey"), tokens(told))
    assert not other_half(tokens("9 minutes with Vey"), tokens(told + " the" * 120))
    assert not is_other_half(tokens("9 minutes with Sund"), tokens(told + " the" * 120))


def test_all_sources_of_an_answer_share_one_bound_on_the_costly_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counting(said: Sequence[Token], told: Sequence[Token]) -> bool:
        nonlocal compared
        compared += 1
        return False

    monkeypatch.setattr(contradiction, "exchanged_words", counting)
    trees = ("alder", "birch", "cedar", "dogwood", "elder", "fir")
    written = [" ".join(each) for each in islice(permutations(trees), 60)]
    passage = "".join(f"{one} larch. " for one in written)
    sources = [NumberedSource(number, f"{number}", f"{number}", None, (passage,)) for number in (1, 2, 3)]
    cited(" ".join(f"{one} [1][2][3]." for one in written), Evidence(tuple(sources)))
    assert compared == contradiction.MAX_EXCHANGES
