"""Finds sources that contradict a sentence although they contain the sentence's words. Pure; uses no model.

Each clause of the sentence is compared with its nearest clauses, the clauses of the source that share the largest
number of words with it. The source contradicts a clause if each nearest clause differs from it by one of three rules.

    negation   one clause negates words that the other clause asserts ("not", "no", "never", "without", "fails to"), has
               "unsafe" instead of "safe", or has the opposite of a word
    value      the clauses have different numbers or names at the same place, or one number with different units
    order      two parties are exchanged, while the voice is the same ("was acquired by") and no word is replaced by its
               opposite ("worse than"); or two events are in the opposite order (see `order`)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Final

from workers.enrichment.answering.anchors import other_direction, other_unit, other_value
from workers.enrichment.answering.clauses import Clause, Token, clauses, negations_at, says_something, stem
from workers.enrichment.answering.negation import (
    BEFORE_MONTHS,
    ENDINGS,
    MODALS,
    NO_PREFIXES,
    OPPOSITES,
    PREFIXES,
    UNCERTAIN,
)
from workers.enrichment.answering.order import exchanged, is_passive, other_time
from workers.enrichment.answering.wording import exchanged_words, has_its_words, is_other_half, other_half

MAX_CLAUSES: Final = 40
"""Cap on the clauses of one sentence that are compared with a source."""
MAX_EXCHANGES: Final = 100
"""Cap on the pairs of sentences in one answer that are searched for exchanged words; a pair takes up to 10 ms."""
_MAX_COMPARED: Final = 4
"""Cap on the nearest clauses of a source that are compared with one clause of the sentence."""
_BESIDE: Final = 6
"""Cap on the neighbouring clauses, on each side of a clause in its sentence, that are searched for negations, too."""
_REACH: Final = 4
"""A negation negates at most this many content words after it."""
_MIN_SHARED: Final = 0.5
"""Least share of a clause's words that a nearest clause must have. If the share is lower, the subjects differ."""
_FEWEST_IN_PREFIXED: Final = 4
_SUBJECT_WORDS: Final = 2
_FEWEST_IN_REST: Final = 2
_MOST_OF_REST: Final = 0.5
"""Like `_MIN_SHARED`, but for a nearest clause with another subject, and without counting the subject's words."""

_OPPOSITE: Final[Mapping[str, frozenset[str]]] = {
    word: frozenset(stem(other) for pair in OPPOSITES if word in map(stem, pair) for other in pair) - {word}
    for word in {stem(one) for pair in OPPOSITES for one in pair}
}

Exchanges = dict[tuple[str, ...], bool]
"""Cached results of the costly function `exchanged_words`; the keys are the words of both sentences."""


class Source:
    """A source's clauses, for comparison with many sentences. `common` holds the words without content."""

    def __init__(self, texts: Sequence[str], common: frozenset[str], exchanges: Exchanges) -> None:
        """All sources of an answer share `exchanges`, so that MAX_EXCHANGES bounds the time of the answer."""
        self._clauses: list[Clause] = []
        self._beside: list[list[Clause]] = []
        """For each clause, the nearest other clauses of the same sentence."""
        self._sentence_of: list[list[Token]] = []
        """The tokens of each clause's sentence."""
        self._holding: dict[str, list[int]] = defaultdict(list)
        for text in texts:
            for _, together in groupby(clauses(text, common), key=attrgetter("sentence")):
                beside = list(together)
                whole = [token for clause in beside for token in clause.tokens]
                for at, clause in enumerate(beside):
                    for word in clause.content:
                        self._holding[word].append(len(self._clauses))
                    self._clauses.append(clause)
                    self._sentence_of.append(whole)
                    self._beside.append([*beside[max(0, at - _BESIDE) : at], *beside[at + 1 : at + 1 + _BESIDE]])

        self._exchanges = exchanges
        self._names = frozenset(token.stem for clause in self._clauses for token in clause.tokens if token.is_name)

    def denies(self, sentence: Sequence[Clause]) -> bool:
        """True if the source contradicts a clause of this sentence."""
        said = [clause for clause in sentence[:MAX_CLAUSES] if clause.content]
        return any(self._denies(clause, said) for clause in said)

    def _denies(self, said: Clause, beside: Sequence[Clause]) -> bool:
        by_all = self._nearest(said)
        nearest = [by_all, self._nearest_besides_subject(said, by_all)]
        whole = [token for clause in beside if clause.sentence == said.sentence for token in clause.tokens]
        return any(near and all(self._denies_here(said, beside, whole, at) for at in near) for near in nearest)

    def _nearest(self, said: Clause) -> list[int]:
        """Return the indices of the clauses that share the largest number of words with `said`.

        Shared plain words break a tie. The first content words are counted twice, because they name the subject.
        """
        words = [*said.content, *_subject(said)]
        shared = Counter(at for word in words for at in self._holding.get(word, ()))
        most = max(shared.values(), default=0)
        return self._plainest(said, shared, most) if most >= _MIN_SHARED * len(words) else []

    def _nearest_besides_subject(self, said: Clause, nearest: Sequence[int]) -> list[int]:
        """Return the indices of the clauses that share the largest number of words with `said` besides its subject.

        Such a clause must share at least twice as many of these words as each of the clauses in `nearest`. A clause
        with another subject, or with "it", may still deny the sentence.
        """
        rest = said.content.difference(_subject(said))
        shared = Counter(at for word in rest for at in self._holding.get(word, ()))
        most = max(shared.values(), default=0)
        if len(rest) < _FEWEST_IN_REST or most < _MOST_OF_REST * len(rest):
            return []
        about = max((shared[at] for at in nearest), default=0)
        return self._plainest(said, shared, most) if 2 * about <= most else []

    def _plainest(self, said: Clause, shared: Counter[int], most: int) -> list[int]:
        best = {at: len(said.plain & self._clauses[at].plain) for at, count in shared.items() if count == most}
        plainest = max(best.values())
        return sorted(at for at, count in best.items() if count == plainest)[:_MAX_COMPARED]

    def _denies_here(self, said: Clause, beside: Sequence[Clause], whole: Sequence[Token], at: int) -> bool:
        """True if clause `at` contradicts `said`; `whole` holds the tokens of the sentence that contains `said`."""
        mine, its = _named(said.tokens, self._names), _named(self._clauses[at].tokens, self._names)
        sentence = self._sentence_of[at]
        is_other = other_value(mine, its) or self._is_mixed(said, at)
        if is_other and not is_other_half(whole, sentence):
            return True
        if other_unit(mine, its) or other_direction(mine, its) or other_time(mine, its) or _is_uncertain(mine, its):
            return True
        if other_half(whole, sentence) or self._has_exchanged(whole, sentence):
            return True
        is_english = said.is_english and self._clauses[at].is_english
        is_exchanged = is_english and exchanged(mine, its)
        other_voice = is_passive(mine) != is_passive(its)
        opposites = _opposites(mine, its)
        if is_exchanged and other_voice == bool(opposites):
            return True
        others = [one for one in beside if one is not said]
        return _negates_otherwise(mine, its, others, self._beside[at], {} if is_exchanged else opposites)

    def _has_exchanged(self, said: Sequence[Token], told: Sequence[Token]) -> bool:
        if not has_its_words(said, told) or is_passive(said) != is_passive(told):
            return False
        key = (*(token.stem for token in said), "", *(token.stem for token in told))
        if key not in self._exchanges and len(self._exchanges) < MAX_EXCHANGES:
            self._exchanges[key] = exchanged_words(said, told)
        return self._exchanges.get(key, False)

    def _is_mixed(self, said: Clause, at: int) -> bool:
        """True if a clause beside clause `at` has the words of `said` that clause `at` lacks, and denies the sentence.

        The neighbour denies the sentence by a negation of words that it shares with both other clauses. A shortened
        clause ("and 11 percent in Salme") shares no words with its neighbours, and takes its missing words from the
        clause before.
        """
        told = self._clauses[at]
        missing = said.content - told.content
        return bool(missing) and any(
            missing <= other.content
            and said.plain & told.plain & other.plain
            and _is_negated(said.plain & other.plain, said, other)
            for other in self._beside[at]
        )


def _is_negated(frame: frozenset[str], said: Clause, told: Clause) -> bool:
    """True if `told` negates a word of `frame`, and `said` has no negation."""
    return not _negations(said.tokens) and any(frame & set(one.scope) for one in _negations(told.tokens))


def _is_uncertain(said: Sequence[Token], told: Sequence[Token]) -> bool:
    """True if the source only expects or allows for a word ("expected to fall", "could fall") that the sentence states.

    In the source, the word follows "to" or a modal verb.
    """
    if any(token.stem in UNCERTAIN or _is_modal(said, at) for at, token in enumerate(said)):
        return False
    stems, is_expected = _stems(said), False
    for at, (token, then) in enumerate(pairwise(told)):
        is_expected = is_expected or token.stem in UNCERTAIN
        if then.stem in stems and (_is_modal(told, at) or (is_expected and token.text == "to")):
            return True
    return False


def _is_modal(tokens: Sequence[Token], at: int) -> bool:
    """True if the token at `at` is a modal verb. The "may" in "in May" is not a modal verb."""
    is_month = tokens[at].text == "may" and at > 0 and tokens[at - 1].text in BEFORE_MONTHS
    return tokens[at].text in MODALS and not is_month


def _subject(clause: Clause) -> list[str]:
    saying = dict.fromkeys(token.stem for token in clause.tokens if says_something(token))
    return list(saying)[:_SUBJECT_WORDS]


# -- negation --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Negation:
    """A negation. `scope` holds the negated words, the nearest first."""

    scope: tuple[str, ...]


def _negates_otherwise(
    said: Sequence[Token],
    told: Sequence[Token],
    beside: Sequence[Clause],
    around: Sequence[Clause],
    opposites: Mapping[str, str],
) -> bool:
    """True if one clause negates words that the other clause asserts.

    `beside` holds the other clauses of the sentence, and `around` the source's clauses around `told`. A negation in
    `beside` may correspond to a negation in the source. A negation in `around` may refer to words of `said`.
    """
    said_stems, told_stems = _stems(said), _stems(told)
    mine = _negations(_without_prefixes(said, told_stems))
    its = _negations(_without_opposites(_without_prefixes(told, said_stems), opposites))
    left, unanswered = _unpaired(mine, its, _has_same_word, _in_other_words(said_stems, told_stems))
    if left:
        return True
    elsewhere = [one for clause in beside for one in _negations(clause.tokens)]
    unanswered += [one for clause in around for one in _negations(clause.tokens)]
    _, unanswered = _unpaired(elsewhere, unanswered, _has_same_word)
    everything = [*told, *(token for clause in around for token in clause.tokens)]
    return any(_is_about(one, said_stems, everything) for one in unanswered)


def _negations(tokens: Sequence[Token]) -> list[_Negation]:
    """Find the negations in these tokens. A negation without words after it negates the words before it."""
    found: list[_Negation] = []
    at = 0
    while at < len(tokens):
        length = negations_at(tokens, at)
        if not length:
            at += 1
            continue
        if at + length < len(tokens) and tokens[at + length] is _NOT:  # "not unsafe" says "safe"
            at += length + 1
            continue
        scope = tuple(_scope(tokens, at + length))
        before = [token.stem for token in tokens[:at] if says_something(token)][-_REACH:]
        found.append(_Negation(scope or tuple(before)))
        at += length
    return [one for one in found if one.scope]


def _scope(tokens: Sequence[Token], at: int) -> Iterator[str]:
    reach = _REACH
    while at < len(tokens) and reach and not negations_at(tokens, at):
        if says_something(tokens[at]):
            yield tokens[at].stem
            reach -= 1
        at += 1


_IsPair = Callable[[_Negation, _Negation], bool]


def _unpaired(
    mine: Sequence[_Negation], its: Sequence[_Negation], *tests: _IsPair
) -> tuple[list[_Negation], list[_Negation]]:
    """Pair the negations of both sides by each test in turn, and return each side's negations without a partner."""
    left, right = list(mine), list(its)
    for is_pair in tests:
        for one in list(left):
            other = next((other for other in right if is_pair(one, other)), None)
            if other is not None:
                left.remove(one)
                right.remove(other)
    return left, right


def _has_same_word(one: _Negation, other: _Negation) -> bool:
    return bool(set(one.scope) & set(other.scope))


def _in_other_words(said: frozenset[str], told: frozenset[str]) -> _IsPair:
    """Return a test for negations in other words, such as "did not get better" and "has not improved".

    The test pairs two negations if each text lacks the word that the other text negates.
    """
    return lambda one, other: one.scope[0] not in told and other.scope[0] not in said


def _is_about(negation: _Negation, said: frozenset[str], around: Sequence[Token]) -> bool:
    """True if the sentence has one of the negated words, and this word occurs at most once in `around`."""
    times = Counter(token.stem for token in around)
    return any(word in said and times[word] <= 1 for word in negation.scope)


def _without_prefixes(tokens: Sequence[Token], others: frozenset[str]) -> list[Token]:
    """Replace "unsafe" with "not safe" in the tokens if `others` has "safe"."""
    plain: list[Token] = []
    for token in tokens:
        base = _base(token.text, others)
        plain += [token] if base is None else [_NOT, replace(token, text=base, stem=stem(base))]
    return plain


def _base(word: str, others: frozenset[str]) -> str | None:
    if word in NO_PREFIXES:
        return None
    for prefix in PREFIXES:
        base = word.removeprefix(prefix)
        if base != word and len(base) >= _FEWEST_IN_PREFIXED and stem(base) in others:
            return base
    return None


def _without_opposites(tokens: Sequence[Token], opposites: Mapping[str, str]) -> list[Token]:
    """Replace "fell" with "not rose" in the tokens if the other side has "rose"."""
    plain: list[Token] = []
    for token in tokens:
        word = opposites.get(token.stem)
        plain += [token] if word is None else [_NOT, replace(token, text=word, stem=word, is_common=False)]
    return plain


def _opposites(said: Sequence[Token], told: Sequence[Token]) -> dict[str, str]:
    """Map words of the source (`told`) to their opposites in the sentence (`said`).

    A pair of opposites counts if the sentence lacks the source's word.
    """
    mine, its = _stems(said), _stems(told)
    found = {}
    for word in its - mine:
        for other in _OPPOSITE.get(word, frozenset()) & mine:
            found[word] = other
    others = {token.text: token.stem for token in said if token.stem not in its}
    for token in told:
        for ending, turned in (ENDINGS, ENDINGS[::-1]):
            other = token.text.removesuffix(ending) + turned
            if token.text.endswith(ending) and token.stem not in mine and other in others:
                found[token.stem] = others[other]
    return found


_NOT: Final = Token("not", "not")


def _stems(tokens: Sequence[Token]) -> frozenset[str]:
    return frozenset(token.stem for token in tokens)


def _named(tokens: Sequence[Token], names: Collection[str]) -> list[Token]:
    """Treat a capitalised first word as a name if `names` has it, or if a name follows it ("Norvik Steel")."""
    named = list(tokens)
    for at, token in enumerate(tokens):
        is_followed = at + 1 < len(tokens) and tokens[at + 1].is_name
        if token.starts and not token.is_common and (is_followed or token.stem in names):
            named[at] = replace(token, is_name=True)
    return named
