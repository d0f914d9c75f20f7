"""Estimates the tokens of texts. Enrichment cannot count tokens, because it runs without the engine's tokenizer."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import Stemmer

from schemas.images import IMAGE_TOKENS
from schemas.job import Job

_LETTERS_PER_TOKEN: Final = 3.0
"""Assumed letters per token: English has about four; names have fewer."""
_LETTERS_AND_BLANKS: Final = (string.ascii_letters + string.whitespace).encode()
"""Any other character counts as a token, since many models read digits, marks and non-ASCII characters one by one."""
_FRAME_TOKENS: Final = 64
"""Tokens that a chat template adds to every prompt, such as a default system message and the date."""
_TURN_TOKENS: Final = 8
"""Tokens that a chat template adds around each message."""


def estimated_tokens(text: str) -> int:
    """Estimate the text's tokens, rather too many than too few.

    Each digit, mark and character beyond ASCII counts as one token.
    """
    ascii_only = text.encode("ascii", "ignore")
    letters = len(ascii_only) - len(ascii_only.translate(None, _LETTERS_AND_BLANKS))
    return math.ceil(letters / _LETTERS_PER_TOKEN) + len(text) - letters


def room_for_sources(job: Job, instructions: str = "", context_tokens: int | None = None) -> int | None:
    """Return how many tokens remain for sources after the question, the instructions, the answer and the template.

    The limit is the smaller of the job's `context_window` and the model's own window. None means no limit.
    """
    windows = [window for window in (job.context_window, context_tokens) if window is not None]
    if not windows:
        return None
    messages = job.messages or ()
    said = job.prompt if job.prompt is not None else "\n".join(message.text for message in messages)
    taken = job.max_tokens + estimated_tokens(said) + estimated_tokens(instructions) + IMAGE_TOKENS * len(job.images)
    return max(0, min(windows) - taken - _FRAME_TOKENS - _TURN_TOKENS * len(messages))


K1 = 1.2
"""BM25's k1: controls how soon a term's frequency saturates."""
B = 0.75
"""BM25's b: controls the penalty for long passages."""
RRF_K = 60
"""Constant of reciprocal rank fusion, from the paper.

The larger the value, the less the scores of the first places differ."""
WORDS_WEIGHT = 1.5
"""Weight of the ranking by words. The ranking by meaning has the weight 1.

With equal weights, questions in a page's own words lose as much quality as paraphrased questions gain, since a small
model confuses passages about one subject."""

REST_WEIGHT = 0.6
"""Factor for the weights of passages outside of a page's main text, such as comments, boxes and menus."""

_SET_BACK = 3
"""A passage moves back this many places in the ranking for each better passage of the same document."""
_OVERLAP_SHARE = 0.25
_RUN_WORDS = 3
_SAME_SHARE = 0.8
"""A passage is a repetition if a passage already chosen contains at least this share of its runs of words."""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORDS = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_BREAKS = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]”’])\s+|(?<=[。！？])\s*")  # noqa: RUF001 - full-width marks
_ROW_CHARS = 50
"""A line that is shorter than this, and is not the last one, is a row of a table or of code, not wrapped prose."""
_ROW_END = re.compile(r"[.:;!?{}()\[\],…。！？]$")  # noqa: RUF001 - as above
_ASKING = re.compile(r"\b(?:[Ww](?:ho|hom|hose|hich|hat|hen|here|hy)|[Hh]ow|[Dd](?:o|oes|id))\b")
"""Matches question words. BM25 would weigh these words too much, since answers rarely have them. "WHO" is a name."""
_STEMMER = Stemmer.Stemmer("english")


@dataclass(frozen=True, slots=True)
class _RankedPassage:
    document: int
    place: int
    title: str
    text: str
    is_main: bool

    @property
    def terms(self) -> Counter[str]:
        """The terms of the passage's text and of the document's title, each with its count."""
        return Counter(terms(f"{self.title} {self.text}"))


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on the length of all passages together: `chars` code points, and `tokens` if it is not None."""

    chars: int
    tokens: int | None = None
    source_tokens: int = 0
    """The tokens that the prompt's template adds around the passages of each document."""

    def without(self, text: str, *, is_first: bool) -> Budget | None:
        """Return the budget left after this text; None if the text does not fit.

        `is_first` is True for a document's first text.
        """
        chars, tokens = self.chars - len(text), self.tokens
        if tokens is not None:
            rows = text.count("\n")  # in the prompt, each row gets a mark of two tokens
            tokens -= estimated_tokens(text) + 2 * rows + (self.source_tokens if is_first else 0)
        return None if chars < 0 or (tokens or 0) < 0 else replace(self, chars=chars, tokens=tokens)


class Ranking:
    """The passages of all documents, each with its weight for the question.

    A document is a title, its main text, and the page's other text if there is any. A passage of the other text is
    ranked only if it shares more words with the question than every passage of the main text. Otherwise a list of links
    that repeats the title would confuse a small model.
    """

    def __init__(self, question: str, documents: Sequence[Sequence[str]], passage_chars: int) -> None:
        self._documents = len(documents)
        passages = [
            one for number, document in enumerate(documents) for one in _passages(number, document, passage_chars)
        ]
        by_words = weights(question, [passage.terms for passage in passages])
        best = [0.0] * len(documents)
        for one, weight in zip(passages, by_words, strict=True):
            best[one.document] = max(best[one.document], weight if one.is_main else 0.0)
        weighed = [
            (one, weight)
            for one, weight in zip(passages, by_words, strict=True)
            if one.is_main or weight > best[one.document]
        ]
        self._passages = [passage for passage, _ in weighed]
        self._weights = [weight if passage.is_main else REST_WEIGHT * weight for passage, weight in weighed]

    def candidates(self, most: int) -> list[tuple[int, str, str]]:
        """Return the number, title and text of at most `most` passages, those that rank highest by their words.

        Passages without a word of the question fill the remaining room.
        """
        likeliest = self._in_order(())[:most]
        return [(index, self._passages[index].title, self._passages[index].text) for index in likeliest]

    def chosen(self, budget: Budget, by_meaning: Sequence[int] = ()) -> list[list[str]]:
        """Return the chosen passages of each document, in text order.

        `by_meaning` holds the numbers of the candidates, the nearest to the question first. If it is empty, only words
        decide.

        After a document's first passage, its next ones give way to other documents' passages of about the same score.
        Irrelevant passages come last. A passage that repeats a chosen one in nearly the same words is dropped.
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
        """Sort the indices of the passages: the relevant ones first. All but the first of a document are moved back.

        A passage is relevant if it has a word of the question, or is in the nearer half of `by_meaning`.
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


def _passages(number: int, document: Sequence[str], passage_chars: int) -> list[_RankedPassage]:
    """Return the passages of one document; those of the main text come first."""
    title, main, *rest = document
    parts = [(text, True) for text in split(main, passage_chars)]
    parts += [(text, False) for other in rest for text in split(other, passage_chars)]
    return [_RankedPassage(number, place, title, text, is_main) for place, (text, is_main) in enumerate(parts)]


def fused(by_words: Sequence[float], by_meaning: Sequence[int]) -> list[float]:
    """Return the score of each passage from its places in two rankings: by words and by meaning.

    Passages of equal weight share a place. Passages that the model did not compare come after all passages that it
    compared.
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
    """Return all runs of a few words, by which texts are compared (Broder, "On the resemblance of documents", 1997)."""
    words = terms(text)
    return frozenset(tuple(words[at : at + _RUN_WORDS]) for at in range(max(1, len(words) - _RUN_WORDS + 1)))


def _is_said(shingles: frozenset[tuple[str, ...]], said: Sequence[frozenset[tuple[str, ...]]]) -> bool:
    return any(len(shingles & other) >= _SAME_SHARE * len(shingles) for other in said)


def weights(question: str, passages: Sequence[Counter[str]]) -> list[float]:
    """Return each passage's BM25 weight for the question. `passages` holds the counts of each passage's terms."""
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
    """Return the stems of words, and pairs of characters in scripts without spaces."""
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
    """Split the text into passages of about `size` code points.

    Each passage begins with the end of the passage before it.
    """
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
    """Yield sentences with single spaces; a sentence longer than `size` is cut into pieces.

    A sentence that begins a new row of a table or of code starts with a line break.
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
    """Count the sentence's code points, without the line break at its start, which replaces a space."""
    return len(sentence.removeprefix("\n"))


def _joined(sentences: Sequence[str]) -> str:
    return " ".join(sentences).replace(" \n", "\n").removeprefix("\n")


def _tail(sentences: Sequence[str], size: int) -> list[str]:
    """Return the last sentences that fit into `size` code points."""
    first, length = len(sentences), 0
    while first and length + _size(sentences[first - 1]) <= size:
        first -= 1
        length += _size(sentences[first]) + 1
    return list(sentences[first:])
