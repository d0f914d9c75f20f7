"""Finds the sources that support an answer's sentences, and grades the support.

The levels of support, from the strongest:

    exact        a passage contains the sentence's words unchanged and in order
    fuzzy        a passage contains four fifths of the sentence's words, close together, and every number
    lexical      the source contains the sentence's numbers, names and dates, and most of its content words
    unsupported  none of these, or the source contradicts the sentence in the same words (see `contradiction`)
    dangling     no source has the cited number

If a sentence has quotations, the source must contain them exactly or nearly; else the sentence is unsupported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from rapidfuzz.distance import LCSseq
from rapidfuzz.fuzz import partial_ratio_alignment

from schemas.result import Citation, Support
from workers.enrichment.answering.clauses import Clause, clauses
from workers.enrichment.answering.contradiction import Exchanges, Source
from workers.enrichment.answering.grounding import visible
from workers.enrichment.answering.links import without_unknown_links
from workers.enrichment.answering.quotes import Quoter, without_links, words
from workers.enrichment.evidence import Evidence, NumberedSource

FUZZY_SHARE: Final = 0.8
LEXICAL_SHARE: Final = 0.6
BEARING: Final = (Support.EXACT, Support.FUZZY, Support.LEXICAL)
"""The levels at which a source supports a sentence, from the strongest."""
MAX_SENTENCES: Final = 500
"""Cap on the sentences that are compared with sources, since an answer may have any number of sentences."""
_MAX_FUZZY_WORDS: Final = 120
MAX_ALIGNED: Final = 500_000
"""Budget of one answer for aligning sentences with passages.

An alignment costs the number of the sentence's words times the number of the passage's words. Spending the whole
budget takes about a tenth of a second. Sentences beyond the budget get `lexical` at most."""

CITATION: Final = re.compile(
    r"[\[【]\^?(?:(?:sources?|citations?|webpages?)\s*:?\s*)?(\d{1,4}(?:\s*[,;]\s*\^?\d{1,4})*)(?:(?::\d+)?†[^\[\]【】]{0,80})?[\]】]",
    re.IGNORECASE,
)
"""`[1]`, `[1, 2]`, and forms that models add: `[Source 1]`, `[citation:1]`, `[webpage 1]`, `[^1]`, `【1†x】`."""
_PLAIN: Final = re.compile(r"\[\d+(?:\s*[,;]\s*\d+)*\]")
_INTERVAL: Final = re.compile(r"(?:\bCI|\b(?:interval|range)(?: of)?|[=≈∈])\s*$", re.IGNORECASE)
"""Matches the text that announces an interval, such as "CI" before "[1, 2]"."""
_BEFORE_INTERVAL: Final = 20
_MARKERS_HERE: Final = re.compile(rf"(?:\s*{CITATION.pattern})+", re.IGNORECASE)
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_END: Final = re.compile(r"(?:[.!?][\"')\]”’]*(?=\s|[\[【]|$)|[。！？]|\n)")  # noqa: RUF001 - full-width marks
_QUOTED: Final = re.compile(r"[\"“„«「]([^\"“”„«»「」]{1,2000})[\"”“»」]")
_QUOTE_WORDS: Final = 4
_AS_QUOTED: Final = (Support.EXACT, Support.FUZZY)
_NAME_LETTERS: Final = 4
"""Names are compared by this many first letters, because a source may write a name with another ending."""
_DATE_LETTERS: Final = 3
"""Number of first letters that identify a month or a day, in full or abbreviated."""
_STRENGTH: Final = (Support.EXACT, Support.FUZZY, Support.LEXICAL, Support.UNSUPPORTED, Support.DANGLING)

_COMMON_WORDS: Final = (
    "a an the and or but if of in on at to from by for with as is are was were be been being it its this that these "
    "those he she they them his her their we you i has have had do does did which who whom what when where there then "
    "than so also into over under about can could will would may might should must such s t "
    "answer question according based source sources page text article says states stated mentions mentioned"
)
_COMMON: Final = frozenset(_COMMON_WORDS.split())


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A sentence with its citation markers. `start` and `end` count code points of the whole text."""

    start: int
    end: int
    words: tuple[str, ...]
    numbers: tuple[int, ...]
    """The source numbers in the sentence's markers."""
    text: str = ""
    """The sentence as written, without its markers."""
    quotes: tuple[str, ...] = ()
    """The sentence's quotations of at least four words; a shorter quotation may be a name."""


@dataclass(frozen=True, slots=True)
class _SourcePassage:
    """A passage as a list of words, and as one line of these words."""

    words: tuple[str, ...]
    line: str
    vocabulary: frozenset[str]

    @classmethod
    def of(cls, text: str) -> _SourcePassage:
        found = words(text)
        return cls(found, _line(found), frozenset(found))


@dataclass(frozen=True, slots=True)
class _SourceWords:
    """A source, split into words."""

    id: str
    passages: tuple[_SourcePassage, ...]
    vocabulary: frozenset[str]
    texts: tuple[str, ...]
    beginnings: frozenset[str]
    """For each word, its first `_DATE_LETTERS` letters, to find dates, and its first `_NAME_LETTERS`, to find names."""

    @classmethod
    def of(cls, source: NumberedSource) -> _SourceWords:
        texts = (source.title or "", *source.passages)
        passages = tuple(_SourcePassage.of(text) for text in texts)
        vocabulary = frozenset(word for passage in passages for word in passage.vocabulary)
        beginnings = frozenset(word[:letters] for word in vocabulary for letters in (_DATE_LETTERS, _NAME_LETTERS))
        return cls(source.id, passages, vocabulary, texts, beginnings)

    def has_name(self, word: str) -> bool:
        """True if the source has this word, or for a long word, one with the same beginning ("China", "Chinese")."""
        return word in self.vocabulary or (len(word) >= _NAME_LETTERS and word[:_NAME_LETTERS] in self.beginnings)

    def clauses(self, exchanges: Exchanges) -> Source:
        """Split the source into clauses. This is costly: call it only if a sentence and the source share words."""
        return Source([without_links(text) for text in self.texts], _COMMON, exchanges)


class SourceTexts:
    """The sources of one answer, each split into words only once, and the remaining budget for aligning sentences."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._sources = {source.number: _SourceWords.of(source) for source in evidence.sources}
        self._left = MAX_ALIGNED
        self._clauses_of: dict[int, Source] = {}
        self._exchanges: Exchanges = {}
        self._quoter = Quoter({number: source.texts for number, source in self._sources.items()}, _COMMON)
        self._said: tuple[str, list[Clause]] = ("", [])
        """The last compared text and its clauses, cached because each text is compared with every source in turn."""

    @property
    def numbers(self) -> Collection[int]:
        """The numbers by which an answer may cite the sources."""
        return self._sources.keys()

    def name(self, number: int) -> str:
        """Return the name of source `number` in a citation. An unknown source is named by its number in brackets."""
        read = self._sources.get(number)
        return f"[{number}]" if read is None else read.id

    def support(self, text: str, number: int) -> Support:
        """Return the level at which source `number` supports this text."""
        read = self._sources.get(number)
        if read is None:
            return Support.DANGLING
        level = self._by_words(text, read)
        if level not in BEARING:
            return level
        return Support.UNSUPPORTED if self._denied(text, number, read) else level

    def denies(self, text: str, number: int) -> bool:
        """True if source `number` contradicts this text, or lacks one of the text's numbers, names or dates."""
        read = self._sources.get(number)
        if read is None:
            return False
        has_all = _numbers(words(text)) <= read.vocabulary and self._has_names(text, read)
        return not has_all or self._denied(text, number, read)

    def _denied(self, text: str, number: int, read: _SourceWords) -> bool:
        if number not in self._clauses_of:
            self._clauses_of[number] = read.clauses(self._exchanges)
        return self._clauses_of[number].denies(self._clauses(text))

    def quoted(self, citation: Citation, text: str, number: int) -> Citation:
        """Return the citation. If it has support, add the words of source `number` that are nearest to `text`."""
        if citation.support not in BEARING:
            return citation
        found = self._quoter.quote(words(text), number)
        if found is None:
            return citation
        clean = {name: without_unknown_links(visible(part), self._evidence) for name, part in found}
        return citation.model_copy(update={"quote": found.model_copy(update=clean)})

    def _clauses(self, text: str) -> list[Clause]:
        if self._said[0] != text:
            self._said = text, clauses(without_links(text), _COMMON)
        return self._said[1]

    def _by_words(self, text: str, read: _SourceWords) -> Support:
        said = words(text)
        if not said or not _numbers(said) <= read.vocabulary:
            return Support.UNSUPPORTED
        line = _line(said)
        if any(line in passage.line for passage in read.passages):
            return Support.EXACT
        content = {word for word in said if word not in _COMMON}
        share = len(content & read.vocabulary) / len(content) if content else 0.0
        if share < LEXICAL_SHARE or not self._has_names(text, read):
            return Support.UNSUPPORTED
        if share >= FUZZY_SHARE - 0.1 and any(self._is_close(said, passage) for passage in read.passages):
            return Support.FUZZY
        return Support.LEXICAL

    def _has_names(self, text: str, read: _SourceWords) -> bool:
        """True if the source has all names, months and days of the text. Names may have other endings."""
        tokens = [token for clause in self._clauses(text) for token in clause.tokens]
        names = {word for token in tokens if token.is_name for word in words(token.text)}
        beginnings = {token.text[:_DATE_LETTERS] for token in tokens if token.is_date}
        return beginnings <= read.beginnings and all(read.has_name(name) for name in names)

    def _is_close(self, said: Sequence[str], passage: _SourcePassage) -> bool:
        if not 3 <= len(said) <= _MAX_FUZZY_WORDS:
            return False
        if sum(word in passage.vocabulary for word in said) < FUZZY_SHARE * len(said):
            return False  # an alignment can match only words that both texts have
        self._left -= len(said) * len(passage.words)
        return self._left >= 0 and _is_close(said, passage.words)


def cited(text: str, evidence: Evidence) -> tuple[str, list[str], list[Citation]]:
    """Return the answer without unknown links, the sources that the answer uses, and its citations.

    A source is used if it supports at least one sentence. Sources are named by id, in the order of first use. If no
    citation of the answer has support, each sentence without a citation is attributed to the source that supports it
    best. Spans count code points of the returned text.
    """
    text = without_unknown_links(text, evidence)
    sources = SourceTexts(evidence)
    sentences = _first_sentences(text, sources.numbers)
    found = [citation for sentence in sentences for citation in _claimed(sentence, sources)]
    if not any(citation.support in BEARING for citation in found):
        found += [one for sentence in sentences if not sentence.numbers for one in _attributed(sentence, sources)]
        found.sort(key=lambda citation: citation.start)
    return text, used(found), found


def used(citations: Sequence[Citation]) -> list[str]:
    """Return the sources of the citations with support, in the order of first use."""
    return list(dict.fromkeys(citation.source for citation in citations if citation.support in BEARING))


def supported_share(text: str, citations: Sequence[Citation]) -> float:
    """Return the share, from 0 to 1, of the answer's sentences that a citation with support covers.

    Sentences with only common words are left out. If no sentence remains, the share is 1.
    """
    sentences = _first_sentences(text)
    saying = [one for one in sentences if any(word not in _COMMON for word in one.words)]
    borne = [(one.start, one.end) for one in citations if one.support in BEARING]
    covered = [one for one in saying if any(start < one.end and one.start < end for start, end in borne)]
    return len(covered) / len(saying) if saying else 1.0


def _claimed(sentence: _Sentence, sources: SourceTexts) -> Iterator[Citation]:
    for number in dict.fromkeys(sentence.numbers):
        yield sources.quoted(_citation(sentence, number, sources), sentence.text, number)


def _attributed(sentence: _Sentence, sources: SourceTexts) -> Iterator[Citation]:
    citations = [(_citation(sentence, number, sources), number) for number in sources.numbers]
    best, number = min(citations, key=lambda pair: _STRENGTH.index(pair[0].support), default=(None, 0))
    if best is not None and best.support is not Support.UNSUPPORTED:
        yield sources.quoted(best, sentence.text, number)


def _citation(sentence: _Sentence, number: int, sources: SourceTexts) -> Citation:
    level = _level(sentence, number, sources)
    return Citation(start=sentence.start, end=sentence.end, source=sources.name(number), support=level)


def _level(sentence: _Sentence, number: int, sources: SourceTexts) -> Support:
    """Return the level at which source `number` supports the sentence.

    The source must contain the sentence's quotations exactly or nearly. If it does, the level is the
    stronger of two levels: that of the sentence, and that of the sentence's weakest quotation.
    """
    level = sources.support(sentence.text, number)
    if not sentence.quotes or level not in BEARING:
        return level
    weakest = max((sources.support(quote, number) for quote in sentence.quotes), key=_STRENGTH.index)
    return min(level, weakest, key=_STRENGTH.index) if weakest in _AS_QUOTED else Support.UNSUPPORTED


def contradict(one: str, other: str) -> bool:
    """True if one of two sentences contradicts the other by the rules of `contradiction`. The order has no effect."""
    return any(
        Source([told], _COMMON, {}).denies(clauses(said, _COMMON)) for said, told in ((one, other), (other, one))
    )


def _first_sentences(text: str, numbers: Collection[int] | None = None) -> list[_Sentence]:
    return list(islice(_sentences(text, numbers), MAX_SENTENCES))


def is_citation(marker: re.Match[str], numbers: Collection[int] | None) -> bool:
    """True if brackets with numbers are a citation. `numbers` holds the numbers of the sources.

    Plain brackets with a 0 are no citation, since no source has that number. Several numbers are an interval
    or a list, not a citation, if they follow "CI" or "=", or if no source has any of them. A single unknown number is a
    dangling citation.
    """
    named = [int(number) for number in re.findall(r"\d+", marker.group(1))]
    if _PLAIN.fullmatch(marker.group()) is None:
        return True
    if 0 in named:
        return False
    if len(named) == 1:
        return True
    before = marker.string[max(0, marker.start() - _BEFORE_INTERVAL) : marker.start()]
    return (numbers is None or not set(numbers).isdisjoint(named)) and _INTERVAL.search(before) is None


def _sentences(text: str, numbers: Collection[int] | None) -> Iterator[_Sentence]:
    """Yield the text's sentences, stripped. Markers after a full stop belong to the sentence before the stop."""
    plain = _CODE.sub(lambda code: " " * len(code.group()), text)
    plain = CITATION.sub(lambda found: found[0] if is_citation(found, numbers) else f"({found[0][1:-1]})", plain)
    start = 0
    while start < len(plain):
        end = _END.search(plain, start)
        stop = end.end() if end is not None else len(plain)
        trailing = _MARKERS_HERE.match(plain, stop) if plain[start:stop].strip() else None
        stop = trailing.end() if trailing is not None else stop
        yield from _sentence(plain, start, stop)
        start = stop


def _sentence(text: str, start: int, stop: int) -> Iterator[_Sentence]:
    part = text[start:stop]
    numbers = tuple(int(number) for marker in CITATION.finditer(part) for number in re.findall(r"\d+", marker.group(1)))
    plain = CITATION.sub(" ", part)
    found = words(plain)
    if found or numbers:
        begin = start + len(part) - len(part.lstrip())
        quotes = tuple(quote for quote in _QUOTED.findall(part) if len(words(quote)) >= _QUOTE_WORDS)
        yield _Sentence(begin, begin + len(part.strip()), found, numbers, plain, quotes)


def _line(some: Sequence[str]) -> str:
    return f" {' '.join(some)} "


def _is_close(sentence: Sequence[str], passage: Sequence[str]) -> bool:
    """True if a part of the passage has all numbers of the sentence, and four fifths of the sentence's words in order.

    The part has at most twice as many words as the sentence.
    """
    best = partial_ratio_alignment(sentence, passage)
    if best is None:
        return False
    more = (2 * len(sentence) - (best.dest_end - best.dest_start)) // 2
    window = passage[max(0, best.dest_start - more) : best.dest_end + more]
    return LCSseq.similarity(sentence, window) >= FUZZY_SHARE * len(sentence) and _numbers(sentence) <= _numbers(window)


def _numbers(some: Sequence[str]) -> set[str]:
    return {word for word in some if word[0].isdigit()}
