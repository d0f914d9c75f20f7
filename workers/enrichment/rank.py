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
from dataclasses import dataclass

import Stemmer

K1 = 1.2
"""How soon more of the same term stops to count."""
B = 0.75
"""How far a long passage is marked down."""

_OVERLAP_SHARE = 0.25
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORDS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_BREAKS = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]”’])\s+|(?<=[。！？])\s*|\n+")  # noqa: RUF001 - full-width marks
_STEMMER = Stemmer.Stemmer("english")


@dataclass(frozen=True, slots=True)
class _Passage:
    document: int
    place: int
    text: str
    terms: Counter[str]


def rank(question: str, documents: Sequence[tuple[str, str]], budget_chars: int, passage_chars: int) -> list[list[str]]:
    """For each document (title, text) its chosen passages in the order of the text.

    All together have at most `budget_chars` code points. Every document gets its best passage before any gets a second.
    """
    passages = [
        _Passage(number, place, text, Counter(terms(f"{title} {text}")))
        for number, (title, text) in enumerate(documents)
        for place, text in enumerate(split(text, passage_chars))
    ]
    chosen: list[list[_Passage]] = [[] for _ in documents]
    for passage in _in_order(passages, weights(question, [passage.terms for passage in passages])):
        if len(passage.text) <= budget_chars:
            budget_chars -= len(passage.text)
            chosen[passage.document].append(passage)
    return [[passage.text for passage in sorted(some, key=lambda one: one.place)] for some in chosen]


def _in_order(passages: Sequence[_Passage], scores: Sequence[float]) -> list[_Passage]:
    """What bears on the question first, each document's best passage before the others; then what does not."""
    by_score = sorted(range(len(passages)), key=lambda index: (-scores[index], passages[index].place))
    turns: Counter[int] = Counter()
    keys: dict[int, tuple[bool, bool]] = {}
    for index in by_score:
        document = passages[index].document
        keys[index] = (scores[index] <= 0, turns[document] > 0)
        turns[document] += 1
    return [passages[index] for index in sorted(by_score, key=lambda index: keys[index])]


def weights(question: str, passages: Sequence[Counter[str]]) -> list[float]:
    """The BM25 weight of each passage, given as its terms, for the question."""
    lengths = [passage.total() for passage in passages]
    average = (sum(lengths) / len(lengths) if lengths else 0.0) or 1.0
    scores = [0.0] * len(passages)
    for term in set(terms(question)):
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
    fresh = False
    for sentence in _sentences(text, size):
        if fresh and _length(current) + len(sentence) > size:
            passages.append(" ".join(current))
            current = _tail(current, int(size * _OVERLAP_SHARE))
            fresh = False
        current.append(sentence)
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


def _length(sentences: Sequence[str]) -> int:
    return sum(len(sentence) + 1 for sentence in sentences)


def _tail(sentences: Sequence[str], size: int) -> list[str]:
    """The last sentences that fit into `size`."""
    kept: list[str] = []
    for sentence in reversed(sentences):
        if _length(kept) + len(sentence) > size:
            break
        kept.insert(0, sentence)
    return kept
