"""Splits an answer or a source into sentences, and normalises their text. Pure.

Blocks are split first, since a sentence splitter glues bullets and headings together: headings, list items, rows of
tables, paragraphs. `sentencex` then splits a block; it knows "et al.", "Dr." and decimal points. Citations are masked
before by spaces, so that a mark after a full stop belongs to the sentence before it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sentencex import get_sentence_boundaries

from workers.enrichment.answering.grounding import visible
from workers.enrichment.answering.languages import ENGLISH, Language, language_of

CITATION: Final = re.compile(
    r"[\[【]\^?(?:(?:sources?|citations?|webpages?)\s*:?\s*)?(\d{1,4}(?:\s*[,;]\s*\^?\d{1,4})*)(?:(?::\d+)?†[^\[\]【】]{0,80})?[\]】]",
    re.IGNORECASE,
)
"""`[1]`, `[1, 2]`, and forms that models add: `[Source 1]`, `[citation:1]`, `[webpage 1]`, `[^1]`, `【1†x】`."""
_PLAIN: Final = re.compile(r"\[\d+(?:\s*[,;]\s*\d+)*\]")
_INTERVAL: Final = re.compile(r"(?:\bCI|\b(?:interval|range)(?: of)?|[=≈∈])\s*$", re.IGNORECASE)
"""Matches the text that announces an interval, such as "CI" before "[1, 2]"."""
_BEFORE_INTERVAL: Final = 20

MAX_SAID_CHARS: Final = 2000
"""Cap on the characters of a sentence that are searched for patterns; a longer sentence is a list or a table."""
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_HEADING: Final = re.compile(r"\s{0,3}#{1,6}\s|\s*(?:\*\*|__)[^*_]{1,120}(?:\*\*|__):?\s*$")
_ITEM: Final = re.compile(r"\s*(?:>\s*)*(?:[-*+•–]|\(?(?:\d{1,3}|[a-z])[.)])\s+")  # noqa: RUF001 - a dash as a bullet
_RULE: Final = re.compile(r"[\s|:=*_-]*$")
_WRAPPED_CHARS: Final = 60
"""A line of at least this length without a full stop goes on in the next line."""
_CLOSED: Final = re.compile(r"[.!?:;。！？|][\"')\]”’*_]*\s*$")  # noqa: RUF001 - full-width marks
_QUOTED: Final = re.compile(r"[\"“„«「]([^\"“”„«»「」]{1,2000})[\"”“»」]")

_SOURCES: Final = (
    r"(?:sources?|documents?|passages?|articles?|texts?|contexts?|excerpts?|abstracts?|pages?|evidence|materials?|"
    r"quellen?|dokumente?n?|texte?n?|fuentes?|documentos?|textos?|fonti|fontes?|bronnen)"
)
_SAYS: Final = (
    r"(?:sa(?:y|id)|stat|mention|specif|contain|provid|give|answer|address|tell|describ|discuss|cover|includ|indicat|"
    r"clear|us(?:e|able)|enough|information|detail|sufficient|rest|support|"
    r"sag|nenn|erwähn|enth[aä]lt|angab|mentionn|contien|indiqu|précis|dic|mencion|indic|menzion|vermeld)"
)
_DENIES: Final = (
    r"(?:not|n't|no|none|nothing|never|cannot|nor|neither|insufficient|silent|nicht|keine?|nichts|weder|pas|aucune?|rien|"
    r"ningun[ao]?|ningún|nada|non|nessuna?|não|niet|geen)"
)
_SAYS_NOTHING: Final = re.compile(
    rf"\b(?:{_SOURCES}\b.*(?:\b|(?={_DENIES})){_DENIES}\b.*\b{_SAYS}|{_DENIES}\b.*\b{_SOURCES}\b.*\b{_SAYS}"
    rf"|{_DENIES}\b.*\b{_SAYS}\w*\b.*\b{_SOURCES})",
    re.IGNORECASE,
)
_SPEAKS_OF_ITSELF: Final = re.compile(
    r"(?:i|we)\b.*(?:cannot|can't|could not|couldn't|do not|don't|unable)\b|here (?:is|are)\b", re.IGNORECASE
)
_TURN: Final = re.compile(r"[;,]\s*(?:but|however|although|though)\b|\bhowever\b", re.IGNORECASE)

_SUPERSCRIPT: Final = re.compile(r"(?<=[\d)])[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_VULGAR: Final = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")
_SAME_MARKS: Final = {
    "'": "\u2018\u2019\u201a\u201b\u02bc\u2032",
    '"': "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033",
    "-": "\u2212\u2010\u2011\u2012\u2013",
    "/": "\u2044",
    "\u00b5": "\u03bc",
    "x": "\u00d7",
    "\u00b0": "\u00ba",
}
"""Characters that mean the same: apostrophes, quotation marks, minus signs and hyphens, micro signs, degrees."""
_FOLDED: Final = str.maketrans({other: one for one, others in _SAME_MARKS.items() for other in others})


def listed(text: str) -> tuple[str, ...]:
    """Return the words of a table that is written as one text."""
    return tuple(text.split())


def blanked(text: str, spans: Iterable[tuple[int, int]], blank: str = " ") -> str:
    """Return the text with blanks in these places; all other places stay where they are."""
    kept = list(text)
    for start, end in spans:
        kept[start:end] = blank * (end - start)
    return "".join(kept)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with its citation marks. `start` and `end` count code points of the whole text."""

    start: int
    end: int
    text: str
    """The normalised text, without marks."""
    numbers: tuple[int, ...] = ()
    """The numbers of the sources that the marks cite."""
    quotes: tuple[str, ...] = ()
    """The normalised quotations."""
    is_heading: bool = False
    language: Language = ENGLISH
    """The language of the whole text."""

    @property
    def is_claim(self) -> bool:
        """True if the sentence says something that sources can support: no heading, no question, no "they do not say".

        A line that ends with a colon only announces the lines below it.
        """
        plain = self.text[:MAX_SAID_CHARS].strip(" *_")
        if self.is_heading or not plain or plain.endswith(("?", ":", "？")):  # noqa: RUF001 - a full-width mark
            return False
        says_nothing = _SAYS_NOTHING.search(plain) is not None or _SPEAKS_OF_ITSELF.match(plain) is not None
        return not says_nothing or _TURN.search(plain) is not None


def normal(text: str) -> str:
    """Return the text with one spelling of each character, for answers and sources alike.

    Compatibility characters (ligatures, full-width digits), quotation marks, apostrophes and minus signs get one form.
    Invisible characters go; an exponent keeps its meaning ("10⁶" is "10^6").
    """
    if text.isascii():
        return _CONTROL.sub(" ", text)
    text = _SUPERSCRIPT.sub(lambda found: "^" + found.group(), _VULGAR.sub(" ", visible(text)))
    return unicodedata.normalize("NFKC", text.translate(_FOLDED)).translate(_FOLDED)


def in_one_line(text: str) -> str:
    """Return the normalised text with single spaces."""
    return " ".join(normal(text).split())


def sentences(
    text: str, numbers: Collection[int] | None = None, language: Language | None = None
) -> Iterator[Sentence]:
    """Yield the text's sentences. `numbers` holds the numbers of the sources: other brackets are no citations.

    `language` is the text's language; by default, the text tells it.
    """
    plain = _CODE.sub(lambda code: " " * len(code.group()), text)
    marks = [mark for mark in CITATION.finditer(plain) if is_citation(mark, numbers)]
    masked = blanked(plain, (mark.span() for mark in marks))
    language = language or language_of(masked)
    at = 0
    for block_start, block_end, is_heading in _blocks(masked):
        for start, end in _split(masked, block_start, block_end, language):
            while at < len(marks) and marks[at].end() <= start:
                at += 1
            written = masked[start:end]
            begin, stop = end - len(written.lstrip()), start + len(written.rstrip())
            cited: list[int] = []
            for mark in marks[at:]:
                if mark.start() >= end:
                    break
                begin, stop = min(begin, mark.start()), max(stop, mark.end())
                cited += _numbers(mark)
            said = in_one_line(written)
            if said or cited:
                quotes = tuple(map(in_one_line, _QUOTED.findall(written)))
                yield Sentence(begin, stop, said, tuple(dict.fromkeys(cited)), quotes, is_heading, language)


def is_citation(marker: re.Match[str], numbers: Collection[int] | None) -> bool:
    """True if brackets with numbers are a citation. `numbers` holds the numbers of the sources.

    Plain brackets with a 0 are no citation, since no source has that number. Several numbers are an interval
    or a list, not a citation, if they follow "CI" or "=", or if no source has any of them. A single unknown number is a
    dangling citation.
    """
    named = _numbers(marker)
    if _PLAIN.fullmatch(marker.group()) is None:
        return True
    if 0 in named:
        return False
    if len(named) == 1:
        return True
    before = marker.string[max(0, marker.start() - _BEFORE_INTERVAL) : marker.start()]
    return (numbers is None or not set(numbers).isdisjoint(named)) and _INTERVAL.search(before) is None


def _numbers(mark: re.Match[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", mark[1])]


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield the span of each block, without bullets, and whether it is a heading."""
    start, end, is_open = 0, 0, False
    position = 0
    for line in text.splitlines(keepends=True):
        here, position = position, position + len(line)
        stripped = line.strip()
        if not stripped or _RULE.match(line):
            # A mark at the end of the block before, such as a citation on a line of its own, stays with that block.
            if is_open and not stripped and line.strip("\r\n"):
                end = position
                continue
            if is_open:
                yield start, end, False
            is_open = False
            continue
        heading, item = _HEADING.match(line), _ITEM.match(line)
        before = text[start:end].rstrip() if is_open else ""
        goes_on = (
            is_open
            and heading is None
            and item is None
            and not _CLOSED.search(before)
            and (stripped[0].islower() or len(before.rsplit("\n", 1)[-1]) >= _WRAPPED_CHARS)
        )
        if goes_on:
            end = position
            continue
        if is_open:
            yield start, end, False
        is_open = heading is None
        start, end = here + (item.end() if item is not None and heading is None else 0), position
        if heading is not None:
            yield start, end, True
    if is_open:
        yield start, end, False


def _split(text: str, start: int, end: int, language: Language) -> Iterator[tuple[int, int]]:
    block = text[start:end]
    flat = re.sub(r"[\r\n]", " ", block)
    flat = re.sub(r"(\s+)([.!?])(?=\s|$)", lambda found: found[2] + found[1], flat)  # a stop behind a masked mark
    bounds = get_sentence_boundaries(language.code, flat)
    if not bounds:
        yield start, end
    for bound in bounds:
        yield start + bound["start_index"], start + bound["end_index"]
