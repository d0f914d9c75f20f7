"""The passages that matter for a question. Runs in a member of the pool; pure.

The weight is BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equation
3.15) with the idf of Lucene, which is never negative. Words are stemmed; Chinese, Japanese and Korean text, which has
no spaces, is taken in pairs of characters.

Where a model has ordered the likeliest passages by meaning too, both orders are joined by reciprocal rank fusion
(Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods",
2009). That order comes in as an argument: no model runs here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import Stemmer

from workers.enrichment.choosing.tokens import estimated_tokens

K1 = 1.2
"""How soon more of the same term stops to count."""
B = 0.75
"""How far a long passage is marked down."""
RRF_K = 60
"""How little the first few places of an order differ, as in the paper."""
WORDS_WEIGHT = 1.5
"""What a place by words counts, where one by meaning counts 1. With equal weights, questions that use a page's words
lose as much as those that paraphrase it win: a small model takes passages about one subject for one another."""

_SET_BACK = 3
"""Places by which each further passage of a document stands behind where its weight puts it."""
_OVERLAP_SHARE = 0.25
_RUN_WORDS = 3
_SAME_SHARE = 0.8
"""With so many of its runs of words in a chosen passage, another says nothing new."""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORDS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_BREAKS = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]”’])\s+|(?<=[。！？])\s*")  # noqa: RUF001 - full-width marks
_ROW_CHARS = 50
"""A line as short as this, before another one, is a row of a table or of code, and no prose that was wrapped."""
_ROW_END = re.compile(r"[.:;!?{}()\[\],…。！？]$")  # noqa: RUF001 - as above
_ASKING = re.compile(r"\b(?:[Ww](?:ho|hom|hose|hich|hat|hen|here|hy)|[Hh]ow|[Dd](?:o|oes|id))\b")
"""Words by which a question is one: rare in what answers it, so that BM25 would make much of them. "WHO" is none."""
_STEMMER = Stemmer.Stemmer("english")


@dataclass(frozen=True, slots=True)
class _RankedPassage:
    document: int
    place: int
    title: str
    text: str

    @property
    def terms(self) -> Counter[str]:
        """Those of its title count as its own."""
        return Counter(terms(f"{self.title} {self.text}"))


@dataclass(frozen=True, slots=True)
class Budget:
    """What all passages together may have: code points, and tokens where that is not None."""

    chars: int
    tokens: int | None = None
    source_tokens: int = 0
    """What the prompt says around the passages of each document."""

    def without(self, text: str, *, is_first: bool) -> Budget | None:
        """What is left behind this text, the first of its document or not; None where it does not fit."""
        chars, tokens = self.chars - len(text), self.tokens
        if tokens is not None:
            rows = text.count("\n")  # each is marked as quoted in the prompt
            tokens -= estimated_tokens(text) + 2 * rows + (self.source_tokens if is_first else 0)
        return None if chars < 0 or (tokens or 0) < 0 else replace(self, chars=chars, tokens=tokens)


def rank(
    question: str,
    documents: Sequence[tuple[str, str]],
    budget: Budget,
    passage_chars: int,
    by_meaning: Sequence[int] = (),
) -> list[list[str]]:
    """For each document (title, text) its chosen passages in the order of the text, see `Ranking.chosen`."""
    return Ranking(question, documents, passage_chars).chosen(budget, by_meaning)


class Ranking:
    """The passages of all documents (title, text), each with its weight for the question."""

    def __init__(self, question: str, documents: Sequence[tuple[str, str]], passage_chars: int) -> None:
        self._documents = len(documents)
        self._passages = [
            _RankedPassage(number, place, title, text)
            for number, (title, text) in enumerate(documents)
            for place, text in enumerate(split(text, passage_chars))
        ]
        self._weights = weights(question, [passage.terms for passage in self._passages])

    def candidates(self, most: int) -> list[tuple[int, str, str]]:
        """The likeliest passages by their words, at most so many: number, title and text of each.

        Those that share no word with the question are among them where there is room.
        """
        likeliest = self._in_order(())[:most]
        return [(index, self._passages[index].title, self._passages[index].text) for index in likeliest]

    def chosen(self, budget: Budget, by_meaning: Sequence[int] = ()) -> list[list[str]]:
        """For each document its chosen passages in the order of the text.

        `by_meaning` are the numbers of the candidates, the nearest to the question first; empty, words alone decide.

        A document's further passages give way to those of others that bear on the question about as well, and what
        bears on nothing comes last. A passage that says what a chosen one says already, in nearly the same words, is
        dropped.
        """
        chosen: list[list[_RankedPassage]] = [[] for _ in range(self._documents)]
        said: list[frozenset[tuple[str, ...]]] = []
        for passage in (self._passages[index] for index in self._in_order(by_meaning)):
            left = budget.without(passage.text, is_first=not chosen[passage.document])
            if left is not None and not _is_said(shingles := _shingles(passage.text), said):
                budget = left
                said.append(shingles)
                chosen[passage.document].append(passage)
        return [[passage.text for passage in sorted(some, key=lambda one: one.place)] for some in chosen]

    def _in_order(self, by_meaning: Sequence[int]) -> list[int]:
        """What bears on the question first, a document's further passages set back; then what does not.

        A passage bears on it that has a word of it, or that is in the nearer half of those that a model has compared.
        """
        scores = fused(self._weights, by_meaning)
        near = frozenset(by_meaning[: len(by_meaning) // 2])
        turns: Counter[int] = Counter()
        keys: dict[int, tuple[bool, int]] = {}
        by_score = sorted(range(len(scores)), key=lambda index: (-scores[index], self._passages[index].place))
        for place, index in enumerate(by_score):
            document = self._passages[index].document
            keys[index] = (self._weights[index] <= 0 and index not in near, place + _SET_BACK * turns[document])
            turns[document] += 1
        return sorted(by_score, key=lambda index: keys[index])


def fused(by_words: Sequence[float], by_meaning: Sequence[int]) -> list[float]:
    """The score of each passage by its places in two orders: its weight's, and among those that a model compared.

    Equal weights share a place; what the model did not see stands behind all that it saw.
    """
    places: dict[float, int] = {}
    for place, weight in enumerate(sorted(by_words, reverse=True), start=1):
        places.setdefault(weight, place)
    seen = {index: place for place, index in enumerate(by_meaning, start=1)}
    unseen = len(seen) + 1
    return [
        WORDS_WEIGHT / (RRF_K + places[weight]) + 1 / (RRF_K + seen.get(index, unseen))
        for index, weight in enumerate(by_words)
    ]


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    """All runs of a few words, by which texts are compared (Broder, "On the resemblance of documents", 1997)."""
    words = terms(text)
    return frozenset(tuple(words[at : at + _RUN_WORDS]) for at in range(max(1, len(words) - _RUN_WORDS + 1)))


def _is_said(shingles: frozenset[tuple[str, ...]], said: Sequence[frozenset[tuple[str, ...]]]) -> bool:
    return any(len(shingles & other) >= _SAME_SHARE * len(shingles) for other in said)


def weights(question: str, passages: Sequence[Counter[str]]) -> list[float]:
    """The BM25 weight of each passage, given as its terms, for the question."""
    lengths = [passage.total() for passage in passages]
    average = (sum(lengths) / len(lengths) if lengths else 0.0) or 1.0
    scores = [0.0] * len(passages)
    for term in set(terms(_ASKING.sub(" ", question))):
        holding = [index for index, passage in enumerate(passages) if term in passage]
        idf = math.log(1 + (len(passages) - len(holding) + 0.5) / (len(holding) + 0.5))
        for index in holding:
            frequency = passages[index][term]
            length = K1 * (1 - B + B * lengths[index] / average)
            scores[index] += idf * frequency * (K1 + 1) / (frequency + length)
    return scores


def terms(text: str) -> list[str]:
    """Stems of words, and pairs of characters where a script has no spaces."""
    found: list[str] = []
    for word in _WORDS.findall(unicodedata.normalize("NFKC", text).casefold()):
        if not _IS_CJK.match(word):
            found.append(_STEMMER.stemWord(word))
        elif len(word) == 1:
            found.append(word)
        else:
            found.extend(word[at : at + 2] for at in range(len(word) - 1))
    return found


def split(text: str, size: int) -> list[str]:
    """Passages of whole sentences of about `size` code points, each beginning with the end of the one before."""
    passages: list[str] = []
    current: list[str] = []
    length = 0
    fresh = False
    for sentence in _sentences(text, size):
        if fresh and length + _size(sentence) > size:
            passages.append(_joined(current))
            current = _tail(current, int(size * _OVERLAP_SHARE))
            length = sum(map(_size, current)) + len(current)
            fresh = False
        current.append(sentence)
        length += _size(sentence) + 1
        fresh = True
    if fresh:
        passages.append(_joined(current))
    return passages


def _sentences(text: str, size: int) -> Iterator[str]:
    """Sentences with single spaces; one that is longer than a passage comes in pieces.

    One that begins the next row of a table or of code begins with a line break.
    """
    before = ""
    for line in text.split("\n"):
        row = "\n" if before and (len(before) < _ROW_CHARS or _ROW_END.search(before)) else ""
        for part in _BREAKS.split(line):
            sentence = " ".join(part.split())
            for start in range(0, len(sentence), size):
                yield row + sentence[start : start + size].strip()
                row = ""
        before = line.strip()


def _size(sentence: str) -> int:
    """Without its line break, which takes the place of a space."""
    return len(sentence.removeprefix("\n"))


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(sentences).replace(" \n", "\n").removeprefix("\n")


def _tail(sentences: Sequence[str], size: int) -> list[str]:
    """The last sentences that fit into `size`."""
    first, length = len(sentences), 0
    while first and length + _size(sentences[first - 1]) <= size:
        first -= 1
        length += _size(sentences[first]) + 1
    return list(sentences[first:])
