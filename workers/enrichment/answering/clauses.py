"""Splits a text into clauses, and each clause into words, negations, numbers with units, and names. Pure.

A clause ends at a mark such as a comma, and at a word such as "but" or "and". The "and" after "between" or "both" ends
no clause.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import Stemmer

from workers.enrichment.answering.negation import IRREGULAR, NEGATING_PHRASES, NEGATIONS, NO_NEGATIONS

_TOKEN: Final = re.compile(
    r"(?P<cjk>[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])|(?P<name>[^\W\d_]{1,20}(?:-[^\W\d_]{1,20}){0,2}-?\d[\w-]{0,40})"
    r"|(?P<number>\d+(?:[.,]\d+)*)|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*)|(?P<percent>%)"  # noqa: RUF001
    r"|(?P<mark>[,;:()。，；：、！？—–]|[.!?](?=\s|$)|\n)"  # noqa: RUF001 - full-width marks
)
_SENTENCE_MARKS: Final = frozenset(".!?\n。！？")  # noqa: RUF001 - as above
_TURNS_WORDS: Final = (
    "but although though while whereas however because aber sondern obwohl während mais pero aunque sino"
)
_TURNS: Final = frozenset(_TURNS_WORDS.split())
_PAIRING: Final = frozenset({"between", "both"})
_PAIRED_WITHIN: Final = 4
"""An "and" within this many tokens after "between" or "both" joins two things, not two clauses."""
_AND: Final = frozenset({"and", "und", "et", "y"})
_GERMAN_WORDS: Final = (
    "als am an auf auch bei beiden bis dem den der des die das ein eine einem einen einer es für hat im in ist mit "
    "sich sie sind über und unter von vor war waren werden wird wurde wurden zu zum zur"
)
_GERMAN: Final = frozenset(_GERMAN_WORDS.split())
_FRENCH_WORDS: Final = (
    "a à au aux avec ce cette dans de des du elle en est et fut il la le les leur ne on ont par pour que qui sa se son "
    "sont sur un une"
)
_FRENCH: Final = frozenset(_FRENCH_WORDS.split())
_SPANISH_WORDS: Final = (
    "al como con cuando de del el en es está fue fueron ha han la las lo los más para por que se su una un y"
)
_SPANISH: Final = frozenset(_SPANISH_WORDS.split())
_FOREIGN: Final = (_GERMAN, _FRENCH, _SPANISH)
_AMBIGUOUS_WORDS: Final = "a am as con den die do en es has in la on son war"
_AMBIGUOUS: Final = frozenset(_AMBIGUOUS_WORDS.split())
"""Words that do not show a text's language, since English has the same words."""
_DATES_WORDS: Final = (
    "january february march april may june july august september october november december monday tuesday wednesday "
    "thursday friday saturday sunday"
)
_DATES: Final = frozenset(_DATES_WORDS.split())
"""Capitalised words that are not names.

If "March" were a name, the text "In March Smith bought" would make Smith a place."""
_FEW: Final = 1
"""Cap on the words of another language in an English text; the cap is 0 for a text without any common English word."""
_SHORT_NOT: Final = ("n't", "n’t")  # noqa: RUF001 - typographic
MAX_TOKENS: Final = 60
"""Cap on the tokens of one clause. The rest of a longer clause begins another clause."""

_UNITS: Final = {
    name: names.split()[0]
    for names in (
        "percent % pct prozent", "g gram grams", "kg kilogram kilograms", "mg milligram milligrams", "µg mcg μg ug",
        "ng",
        "l litre litres liter liters", "ml millilitre millilitres milliliter milliliters",
        "mm millimetre millimetres millimeter millimeters", "cm centimetre centimetres centimeter centimeters",
        "m metre metres meter meters", "km kilometre kilometres kilometer kilometers", "mile miles", "foot feet ft",
        "s second seconds sec", "ms millisecond milliseconds", "min minute minutes", "hour hours h", "day days",
        "week weeks woche wochen semaine semaines semana semanas", "month months monat monate monaten mois mes meses",
        "quarter quarters", "year years jahr jahre jahren an ans año años",
        "thousand", "million millions", "billion billions", "trillion",
        "dollar dollars usd $", "euro euros eur", "pound pounds gbp", "crown crowns", "degree degrees", "bar",
        "volt volts v", "tonne tonnes ton tons t",
        "watt watts w", "kw kilowatt kilowatts", "mw megawatt megawatts", "gw gigawatt gigawatts",
        "kb kilobyte kilobytes", "mb megabyte megabytes", "gb gigabyte gigabytes", "tb terabyte terabytes", "mmhg",
        "mmol millimole millimoles", "mol mole moles",
    )
    for name in names.split()
}  # fmt: skip
_NUMBER_WORDS: Final = "two three four five six seven eight nine ten eleven twelve"
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split(), start=2)}
_STEMMER: Final = Stemmer.Stemmer("english")


@dataclass(frozen=True, slots=True)
class Token:
    """One word, number or name. `text` is the case-folded word; `stem` is the form in which words are compared."""

    text: str
    stem: str
    is_number: bool = False
    is_name: bool = False
    is_common: bool = False
    unit: str = ""
    """The number's unit if it is known: one such as "mg", or two such as "mg per day". Empty for any other token."""
    starts: bool = False
    """True for a capitalised word that begins a sentence: the capital letter does not show that the word is a name."""
    is_date: bool = False
    """True for an English month or day of the week that is capitalised within a sentence."""


@dataclass(frozen=True, slots=True)
class Clause:
    """The tokens of one clause in order. `sentence` is the sentence's number in the text."""

    tokens: tuple[Token, ...]
    sentence: int
    is_english: bool = True
    """False if the most common words of German, French or Spanish show that the text is in that language."""

    content: frozenset[str] = frozenset()
    """Stems of the content words. A content word is neither a common word nor a negation."""
    plain: frozenset[str] = frozenset()
    """The stems in `content` that are neither numbers nor names."""

    @classmethod
    def of(cls, tokens: Sequence[Token], sentence: int, *, is_english: bool) -> Clause:
        """Build the clause of these tokens."""
        saying = [token for token in tokens if says_something(token)]
        plain = frozenset(token.stem for token in saying if not (token.is_number or token.is_name))
        return cls(tuple(tokens), sentence, is_english, frozenset(token.stem for token in saying), plain)


def says_something(token: Token) -> bool:
    """True for a content word: neither a common word nor a negation."""
    return not token.is_common and token.text not in NEGATIONS


def clauses(text: str, common: frozenset[str]) -> list[Clause]:
    """Split a text into clauses. `common` holds the words without content."""
    found: list[Clause] = []
    written = [word for word in re.split(r"[\s'’]+", text.casefold()) if word not in _AMBIGUOUS]  # noqa: RUF001
    foreign = max(_FOREIGN, key=lambda language: sum(word in language for word in written))
    found_words = sum(word in foreign for word in written)
    is_foreign = found_words > _FEW or (found_words == _FEW and common.isdisjoint(written))
    if is_foreign:
        common |= foreign
    names_are_marked = not (is_foreign and foreign is _GERMAN)  # in German, all nouns have a capital, not only names
    for number, sentence in enumerate(_sentences(_tokens(text, common, names_are_marked=names_are_marked))):
        for plain in _unnested(sentence):
            found += [Clause.of(part, number, is_english=not is_foreign) for part in _parts(plain)]
    return found


def negations_at(tokens: Sequence[Token], at: int) -> int:
    """Return the number of tokens of the negation that begins at `at`; 0 if no negation begins there."""
    token = tokens[at]
    behind = tokens[at + 1].text if at + 1 < len(tokens) else ""
    if token.text in NEGATIONS:
        return 0 if (token.text, behind) in NO_NEGATIONS else 1
    if token.text.endswith(_SHORT_NOT):
        return 1
    if token.stem in NEGATING_PHRASES:
        then = NEGATING_PHRASES[token.stem]
        return 1 if not then else 2 * (then == behind)
    return 0


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """Return the word without its ending, by the rules of English."""
    return str(_STEMMER.stemWord(IRREGULAR.get(word, word)))


def _tokens(text: str, common: frozenset[str], *, names_are_marked: bool) -> Iterator[Token | str]:
    """Yield the tokens of a text, and the marks between them."""
    starts = True
    normal = unicodedata.normalize("NFKC", text)
    for found in _TOKEN.finditer(normal):
        kind, written = str(found.lastgroup), found.group()
        if kind == "mark":
            starts = starts or written in _SENTENCE_MARKS
            yield written
            continue
        word = written.casefold()
        unit = _unit(normal, found.end()) if kind == "number" or word in _NUMBERS else ""
        if kind == "number" or unit:  # "six days" is a number, and "six" alone may be part of a name
            number = _NUMBERS.get(word, word.replace(",", ""))
            yield Token(number, number, is_number=True, unit=unit)
        else:
            is_capital = kind == "word" and written[0].isupper() and names_are_marked
            is_letter = len(word) == 1 and word != "i"  # "group A" is a name, although "a" is a common word
            is_date = is_capital and word in _DATES and not starts
            is_plain = starts or (word in common and not is_letter) or word in _DATES or word == "i"
            is_name = kind == "name" or (is_capital and not is_plain)
            yield Token(
                word, stem(word), is_name=is_name, is_date=is_date, starts=starts and is_capital,
                is_common=not is_name and (word in common or kind == "percent" or word in _UNITS),
            )  # fmt: skip
        starts = False


_BEHIND: Final = re.compile(
    r"[\s-]*(?:(thousand|million|billion|trillion)s?\b[\s-]*)?(%|[^\W\d_]+)?(?:(?:\s+(?:per|a|an|each|every)\s+|\s*/\s*)([^\W\d_]+))?"
)


def _unit(text: str, end: int) -> str:
    """Return the unit after a number that ends at `end`, such as "million euro per year"; empty if none is known."""
    found = _BEHIND.match(text, end)
    if found is None:
        return ""
    scale, unit, per = ((part or "").casefold() for part in found.groups())
    whole = f"{scale} {_UNITS.get(unit, '')}".strip()
    return f"{whole} per {_UNITS[per]}" if whole and per in _UNITS else whole


def _sentences(tokens: Iterator[Token | str]) -> Iterator[list[Token | str]]:
    sentence: list[Token | str] = []
    for token in tokens:
        sentence.append(token)
        if isinstance(token, str) and token in _SENTENCE_MARKS:
            yield sentence
            sentence = []
    yield sentence


def _unnested(sentence: Sequence[Token | str]) -> list[list[Token | str]]:
    """Return the sentence without its parentheses, and then the content of each pair of parentheses.

    If parentheses stayed in the sentence, they would cut clauses in two.
    """
    outer: list[Token | str] = []
    found, open_ones = [outer], [outer]
    for part in sentence:
        if part == "(":
            open_ones.append([])
            found.append(open_ones[-1])
        elif part == ")":
            del open_ones[max(1, len(open_ones) - 1) :]
        else:
            open_ones[-1].append(part)
    return found


def _parts(sentence: Sequence[Token | str]) -> Iterator[list[Token]]:
    """Yield the clauses of a sentence, except empty ones."""
    part: list[Token] = []
    for token in sentence:
        if isinstance(token, str) or _begins_clause(token, part):
            if part:
                yield part
            part = []
        if not isinstance(token, str):
            part.append(token)
    if part:
        yield part


def _begins_clause(token: Token, part: Sequence[Token]) -> bool:
    """True if the token begins a new clause after `part`, the tokens before it."""
    if token.text in _TURNS or len(part) >= MAX_TOKENS:
        return True
    is_paired = any(one.text in _PAIRING for one in part[-_PAIRED_WITHIN:])
    return token.text in _AND and not is_paired
