"""The passages that matter for a question. Runs in a member of the pool; pure.

The weight is BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equation
3.15) with the idf of Lucene, which is never negative. Words are stemmed; Chinese, Japanese and Korean text, which has
no spaces, is taken in pairs of characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import Stemmer

from workers.enrichment.tokens import estimated_tokens

K1 = 1.2
"""How soon more of the same term stops to count."""
B = 0.75
"""How far a long passage is marked down."""

_SET_BACK = 3
"""Places by which each further passage of a document stands behind where its weight puts it."""
_OVERLAP_SHARE = 0.25
_RUN_WORDS = 3
_SAME_SHARE = 0.8
"""With so many of its runs of words in a chosen passage, another says nothing new."""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORDS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_BREAKS = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]”’])\s+|(?<=[。！？])\s*|\n+")  # noqa: RUF001 - full-width marks
_ASKING = re.compile(r"\b(?:[Ww](?:ho|hom|hose|hich|hat|hen|here|hy)|[Hh]ow|[Dd](?:o|oes|id))\b")
"""Words by which a question is one: rare in what answers it, so that BM25 would make much of them. "WHO" is none."""
_STEMMER = Stemmer.Stemmer("english")


@dataclass(frozen=True, slots=True)
class _Passage:
    document: int
    place: int
    text: str
    terms: Counter[str]


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
            tokens -= estimated_tokens(text) + (self.source_tokens if is_first else 0)
        return None if chars < 0 or (tokens or 0) < 0 else replace(self, chars=chars, tokens=tokens)


def rank(question: str, documents: Sequence[tuple[str, str]], budget: Budget, passage_chars: int) -> list[list[str]]:
    """For each document (title, text) its chosen passages in the order of the text.

    A document's further passages give way to those of others that bear on the question about as well. A passage that
    says what a chosen one says already, in nearly the same words, is dropped.
    """
    passages = [
        _Passage(number, place, text, Counter(terms(f"{title} {text}")))
        for number, (title, text) in enumerate(documents)
        for place, text in enumerate(split(text, passage_chars))
    ]
    chosen: list[list[_Passage]] = [[] for _ in documents]
    said: list[frozenset[tuple[str, ...]]] = []
    for passage in _in_order(passages, weights(question, [passage.terms for passage in passages])):
        left = budget.without(passage.text, is_first=not chosen[passage.document])
        if left is not None and not _is_said(shingles := _shingles(passage.text), said):
            budget = left
            said.append(shingles)
            chosen[passage.document].append(passage)
    return [[passage.text for passage in sorted(some, key=lambda one: one.place)] for some in chosen]


def _in_order(passages: Sequence[_Passage], scores: Sequence[float]) -> list[_Passage]:
    """What bears on the question first, a document's further passages set back; then what does not."""
    by_score = sorted(range(len(passages)), key=lambda index: (-scores[index], passages[index].place))
    turns: Counter[int] = Counter()
    keys: dict[int, tuple[bool, int]] = {}
    for place, index in enumerate(by_score):
        document = passages[index].document
        keys[index] = (scores[index] <= 0, place + _SET_BACK * turns[document])
        turns[document] += 1
    return [passages[index] for index in sorted(by_score, key=lambda index: keys[index])]


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
        if fresh and length + len(sentence) > size:
            passages.append(" ".join(current))
            current = _tail(current, int(size * _OVERLAP_SHARE))
            length = sum(map(len, current)) + len(current)
            fresh = False
        current.append(sentence)
        length += len(sentence) + 1
        fresh = True
    if fresh:
        passages.append(" ".join(current))
    return passages


def _sentences(text: str, size: int) -> Iterator[str]:
    """Sentences with single spaces; one that is longer than a passage comes in pieces."""
    for part in _BREAKS.split(text):
        sentence = " ".join(part.split())
        for start in range(0, len(sentence), size):
            yield sentence[start : start + size].strip()


def _tail(sentences: Sequence[str], size: int) -> list[str]:
    """The last sentences that fit into `size`."""
    first, length = len(sentences), 0
    while first and length + len(sentences[first - 1]) <= size:
        first -= 1
        length += len(sentences[first]) + 1
    return list(sentences[first:])
