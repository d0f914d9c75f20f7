"""Folds a text into the plain text that matchers read, with the offsets of the original.

Fullwidth digits, styled letters, zero-width characters and stray combining marks would hide a card number or a word
from a matcher. A redaction changes the original text, so each plain character knows its original place.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import groupby
from typing import Final

_MARKS: Final = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f"
"""Marks that combine with letters of any script. A mark that composes with no letter is left out of the plain text."""
_INVISIBLE: Final = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
)
"""Control characters, and characters that a reader cannot see (Unicode's Default_Ignorable_Code_Point)."""
_MOST_MARKS: Final = 15
"""The maximum number of marks of one character.

A limit is needed, because Python's normalisation takes quadratic time for a long run of marks.
"""
_LONGEST_EXPANSION: Final = 4
"""The maximum number of characters that folding makes of one character.

A few ligatures that stand for whole sentences stay as they are.
"""

_LOOKALIKES: Final = str.maketrans("аеорсухкмнвтіјѕһԁαεοριυνκτχ", "aeopcyxkmhbtijshdaeopiuvktx")
"""Cyrillic and Greek letters that look like Latin ones, read as the Latin letters in a word that also has Latin
letters.
"""

_mark = re.compile(f"[{_MARKS}]+")
_control = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_latin, _lookalike = re.compile("[a-z]"), re.compile("[\u03b1-\u03c9\u0430-\u052f]")
_word_with_lookalike = re.compile(r"\b\w*?[\u03b1-\u03c9\u0430-\u052f]\w*")
_invisible = re.compile(f"[{_INVISIBLE}\U000e0000-\U000e0fff]+")


class Plain:
    """A folded text. `text` is for matching; `original` maps a range of `text` to a range of the given text."""

    __slots__ = ("_ends", "_starts", "text")

    def __init__(self, text: str, starts: array[int] | None = None, ends: array[int] | None = None) -> None:
        self.text = text
        self._starts = starts
        self._ends = ends

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the offsets in the given text of the plain range [start, end), which is not empty."""
        if self._starts is None or self._ends is None:
            return start, end
        return self._starts[start], self._ends[end - 1]


def plain(text: str) -> Plain:
    """Fold a text: compatibility forms (NFKC), digits of all scripts to ASCII, without invisible characters.

    The time is linear in the text's length for any text. A text that needs no folding is returned without a copy.
    """
    changing, clusters = _patterns()
    if (_control if text.isascii() else changing).search(text) is None:
        return Plain(text)
    pieces: list[str] = []
    starts, ends = array("I"), array("I")
    done = 0
    for found in clusters.finditer(text):
        start, end = found.span()
        folded = _folded(found[0])
        pieces += (text[done:start], folded)
        starts.extend(range(done, start))
        ends.extend(range(done + 1, start + 1))
        starts.extend([start] * len(folded))
        ends.extend([end] * len(folded))
        done = end
    pieces.append(text[done:])
    starts.extend(range(done, len(text)))
    ends.extend(range(done + 1, len(text) + 1))
    return Plain("".join(pieces), starts, ends)


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return a pattern for characters that folding may change, and a pattern that also matches letters with marks.

    The patterns include all characters beyond U+FFFF, because `re` would try the ranges of those one by one.
    """
    changed = "".join(_ranges(code for code in range(0x80, 0x10000) if _folded(chr(code)) != chr(code)))
    changing = f"[{_MARKS}{_INVISIBLE}{changed}\U00010000-\U0010ffff]"
    return re.compile(changing), re.compile(
        f"{changing}[{_MARKS}]{{0,{_MOST_MARKS}}}|.[{_MARKS}]{{1,{_MOST_MARKS}}}", re.DOTALL
    )


def _ranges(codes: Iterable[int]) -> Iterator[str]:
    """Return ascending code points as ranges of a character class."""
    for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        members = [code for _, code in run]
        yield f"\\U{members[0]:08x}-\\U{members[-1]:08x}"


@lru_cache(maxsize=4096)
def _folded(cluster: str) -> str:
    """Fold a character and its marks, of which there are at most _MOST_MARKS."""
    seen = _invisible.sub("", cluster)
    composed = unicodedata.normalize("NFKC", seen)
    if len(composed) > _LONGEST_EXPANSION * max(1, len(seen)):
        composed = seen
    stripped = _invisible.sub("", _mark.sub("", composed))
    return "".join(map(_ascii_digit, stripped)).replace("\u0130", "I")


def _ascii_digit(character: str) -> str:
    if character.isascii():
        return character
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def latinised(lowered: str) -> str:
    """Return a text in lower case with the Latin letters in place of their look-alikes, in words that have both."""
    if lowered.isascii() or not _lookalike.search(lowered) or not _latin.search(lowered):
        return lowered
    return _word_with_lookalike.sub(_latinised, lowered)


def _latinised(word: re.Match[str]) -> str:
    found = word[0]
    return found.translate(_LOOKALIKES) if _latin.search(found) else found
