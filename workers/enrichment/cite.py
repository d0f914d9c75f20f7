"""Which sentence of an answer rests on which source, and how well.

Support, from the strongest:

    exact        the sentence's words stand in a passage as they are, in that order
    fuzzy        four fifths of them do, close together, with every number and without a negation more or less
    lexical      most of its content words and all its numbers occur in the source
    unsupported  none of these
    dangling     no source has that number

What a sentence puts between quotation marks has to stand in the source, exactly or nearly; else it is unsupported.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from schemas.result import Citation, Support
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.enrichment.links import without_unknown_links

FUZZY_SHARE: Final = 0.8
LEXICAL_SHARE: Final = 0.6
BEARING: Final = (Support.EXACT, Support.FUZZY, Support.LEXICAL)
"""The levels at which a source bears a sentence out, from the strongest."""
MAX_SENTENCES: Final = 500
"""Sentences that are compared; an answer's length is up to its job."""
_MAX_FUZZY_WORDS: Final = 120

_MARKER: Final = re.compile(r"\[(?:sources?\s*|citation:\s*)?(\d{1,4}(?:\s*[,;]\s*\d{1,4})*)\]", re.IGNORECASE)
_MARKERS_HERE: Final = re.compile(rf"(?:\s*{_MARKER.pattern})+", re.IGNORECASE)
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_END: Final = re.compile(r"(?:[.!?][\"')\]”’]*(?=\s|\[|$)|[。！？]|\n)")  # noqa: RUF001 - full-width marks
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001
_QUOTED: Final = re.compile(r"[\"“„«「]([^\"“”„«»「」]{1,2000})[\"”“»」]")
_QUOTE_WORDS: Final = 4
_STRENGTH: Final = (Support.EXACT, Support.FUZZY, Support.LEXICAL, Support.UNSUPPORTED, Support.DANGLING)

_NEGATION_WORDS: Final = "no not never none nor neither without cannot 不 没 沒 未 無 无"
_NEGATIONS: Final = frozenset(_NEGATION_WORDS.split())
_COMMON_WORDS: Final = (
    "a an the and or but if of in on at to from by for with as is are was were be been being it its this that these "
    "those he she they them his her their we you i has have had do does did which who whom what when where there then "
    "than so also into over under about can could will would may might should must such s t "
    "answer question according based source sources page text article says states stated mentions mentioned"
)
_COMMON: Final = frozenset(_COMMON_WORDS.split())


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A sentence with the markers behind it. `start` and `end` are in code points of the whole text."""

    start: int
    end: int
    words: tuple[str, ...]
    numbers: tuple[int, ...]
    """The source numbers in its markers."""
    quotes: tuple[tuple[str, ...], ...] = ()
    """The words of what it puts between quotation marks, where those are more than a name."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A source as words, per passage."""

    source: NumberedSource
    passages: tuple[tuple[str, ...], ...]
    vocabulary: frozenset[str]


def cited(text: str, evidence: Evidence) -> tuple[str, list[str], list[Citation]]:
    """The answer without links that were not given, the sources it uses, and its citations.

    Sources are named by id, in the order of their first use; one that is only cited by a sentence which it does not
    support is not used. Where no citation of the answer's own holds, a sentence without one is put down to the source
    that supports it best. Spans count code points of the text that is returned.
    """
    text = without_unknown_links(text, evidence)
    sources = {source.number: _read(source) for source in evidence.sources}
    sentences = list(_sentences(text))[:MAX_SENTENCES]
    found = [citation for sentence in sentences for citation in _claimed(sentence, sources)]
    if not any(citation.support in BEARING for citation in found):
        found += [one for sentence in sentences if not sentence.numbers for one in _attributed(sentence, sources)]
        found.sort(key=lambda citation: citation.start)
    return text, list(dict.fromkeys(citation.source for citation in found if citation.support in BEARING)), found


def supported_share(text: str, citations: Sequence[Citation]) -> float:
    """The part of the answer's sentences, from 0 to 1, that a citation covers which its source bears out.

    A sentence counts that says something: with a number, or with a word that is not one of the common ones. An answer
    without any is wholly supported.
    """
    sentences = list(_sentences(text))[:MAX_SENTENCES]
    saying = [one for one in sentences if any(word not in _COMMON for word in one.words)]
    borne = [(one.start, one.end) for one in citations if one.support in BEARING]
    covered = [one for one in saying if any(start < one.end and one.start < end for start, end in borne)]
    return len(covered) / len(saying) if saying else 1.0


def _claimed(sentence: _Sentence, sources: dict[int, _Read]) -> Iterator[Citation]:
    for number in dict.fromkeys(sentence.numbers):
        read = sources.get(number)
        name = read.source.id if read is not None else f"[{number}]"
        level = _level(sentence, read) if read is not None else Support.DANGLING
        yield Citation(start=sentence.start, end=sentence.end, source=name, support=level)


def _attributed(sentence: _Sentence, sources: dict[int, _Read]) -> Iterator[Citation]:
    levels = [(_level(sentence, read), read) for read in sources.values()]
    level, read = min(levels, key=lambda pair: _STRENGTH.index(pair[0]), default=(Support.UNSUPPORTED, None))
    if read is not None and level is not Support.UNSUPPORTED:
        yield Citation(start=sentence.start, end=sentence.end, source=read.source.id, support=level)


def _sentences(text: str) -> Iterator[_Sentence]:
    """Sentences without the blanks around them; markers behind the full stop belong to the sentence before them."""
    plain = _CODE.sub(lambda code: " " * len(code.group()), text)
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
    numbers = tuple(int(number) for marker in _MARKER.finditer(part) for number in re.findall(r"\d+", marker.group(1)))
    found = words(_MARKER.sub(" ", part))
    if found or numbers:
        begin = start + len(part) - len(part.lstrip())
        quotes = tuple(quote for quote in map(words, _QUOTED.findall(part)) if len(quote) >= _QUOTE_WORDS)
        yield _Sentence(begin, begin + len(part.strip()), found, numbers, quotes)


def words(text: str) -> tuple[str, ...]:
    """Words and numbers, comparable: compatibility forms and case folded; characters where a script has no spaces."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _read(source: NumberedSource) -> _Read:
    passages = tuple(words(passage) for passage in (source.title or "", *source.passages))
    return _Read(source, passages, frozenset(word for passage in passages for word in passage))


def _level(sentence: _Sentence, read: _Read) -> Support:
    """The support of the sentence. What it quotes has to stand in the source, exactly or nearly; then that counts."""
    level = support(sentence.words, read)
    quoted = [_quote_level(quote, read) for quote in sentence.quotes]
    if not quoted or level is Support.UNSUPPORTED:
        return level
    weakest = max(quoted, key=_STRENGTH.index)
    return weakest if weakest is Support.UNSUPPORTED else min(level, weakest, key=_STRENGTH.index)


def _quote_level(quote: Sequence[str], read: _Read) -> Support:
    level = support(quote, read)
    return Support.UNSUPPORTED if level is Support.LEXICAL else level


def support(sentence: Sequence[str], read: _Read) -> Support:
    """How far the source bears the sentence out."""
    if not sentence or not _numbers(sentence) <= read.vocabulary:
        return Support.UNSUPPORTED
    line = f" {' '.join(sentence)} "
    if any(line in f" {' '.join(passage)} " for passage in read.passages):
        return Support.EXACT
    content = {word for word in sentence if word not in _COMMON}
    share = len(content & read.vocabulary) / len(content) if content else 0.0
    if share < LEXICAL_SHARE or (_negated(sentence) and not _negated(tuple(read.vocabulary))):
        return Support.UNSUPPORTED
    if share >= FUZZY_SHARE - 0.1 and any(_is_close(sentence, passage) for passage in read.passages):
        return Support.FUZZY
    return Support.LEXICAL


def _is_close(sentence: Sequence[str], passage: Sequence[str]) -> bool:
    if not 3 <= len(sentence) <= _MAX_FUZZY_WORDS:
        return False
    blocks = SequenceMatcher(None, sentence, passage, autojunk=False).get_matching_blocks()[:-1]
    if sum(block.size for block in blocks) < FUZZY_SHARE * len(sentence):
        return False
    window = passage[blocks[0].b : blocks[-1].b + blocks[-1].size]
    together = len(window) <= 2 * len(sentence)
    return together and _negated(window) == _negated(sentence) and _numbers(sentence) <= _numbers(window)


def _numbers(some: Sequence[str]) -> set[str]:
    return {word for word in some if word[0].isdigit()}


def _negated(some: Sequence[str]) -> bool:
    return any(word in _NEGATIONS or word.endswith(("n't", "n’t")) for word in some)  # noqa: RUF001 - typographic
