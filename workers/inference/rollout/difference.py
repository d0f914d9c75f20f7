"""The difference of two answers to the same prompt: 0 for equal answers, 1 for different ones."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Final

from rapidfuzz.distance import Indel

_WORD: Final = re.compile(r"[+-]?\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[<>=%]")
"""Matches a number with its sign, a character of a script without spaces, a word, or a sign with a meaning."""
_FEW_WORDS: Final = 8
"""Texts with fewer words are equal only if all their words are, because one changed word makes another answer."""
_MOST_WORDS: Final = 20_000
"""Cap on the words of each text that are compared: the time grows with the square of their number."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The bounds within which two answers are treated as equal."""

    numbers: float = 0.01
    """The largest relative difference of two numbers in JSON."""
    similarity: float = 0.95
    """The least similarity of two texts with eight words or more."""
    meaning: float = 0.95
    """The least cosine of two sentences, for `meaning.Meaning`."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, or the code of the error in its place."""

    text: str | None
    code: str | None = None


def difference(one: Said, other: Said, *, is_json: bool, thresholds: Thresholds) -> float:
    """Return 0 if the answers are equal, else 1. JSON is compared by its fields, and other texts by their words.

    Two failures with the same code are equal.
    """
    if one.text is None or other.text is None:
        return float((one.text, one.code) != (other.text, other.code))
    if one.text == other.text:
        return 0.0
    if is_json:
        try:
            # `parse_int` is float, because int() would refuse a valid long number.
            ours, theirs = (json.loads(text, parse_int=float) for text in (one.text, other.text))
            return float(not _same_json(ours, theirs, thresholds))
        except (ValueError, RecursionError):
            pass
    return float(not _same_text(one.text, other.text, thresholds))


def similarity(one: list[str], other: list[str]) -> float:
    """Return the part of both texts' words that their longest common subsequence covers, 0 to 1 (rapidfuzz's Indel)."""
    return Indel.normalized_similarity(one[:_MOST_WORDS], other[:_MOST_WORDS])


def words(text: str) -> list[str]:
    """Return the words without case, width and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _same_text(one: str, other: str, thresholds: Thresholds) -> bool:
    ours, theirs = words(one), words(other)
    if ours == theirs:
        return bool(ours) or one.strip() == other.strip()
    if min(len(ours), len(theirs)) < _FEW_WORDS:
        return False
    return similarity(ours, theirs) >= thresholds.similarity


def _same_json(one: Any, other: Any, thresholds: Thresholds) -> bool:
    pairs = [(one, other)]
    while pairs:  # a recursion could overflow, because JSON may be nested as deep as Python's stack
        ours, theirs = pairs.pop()
        if isinstance(ours, dict) and isinstance(theirs, dict):
            if ours.keys() != theirs.keys():
                return False
            pairs += [(ours[name], theirs[name]) for name in ours]
        elif isinstance(ours, list) and isinstance(theirs, list):
            if len(ours) != len(theirs):
                return False
            pairs += zip(ours, theirs, strict=True)
        elif not _same_leaf(ours, theirs, thresholds):
            return False
    return True


def _same_leaf(one: Any, other: Any, thresholds: Thresholds) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=thresholds.numbers, abs_tol=1e-9) or (one != one and other != other)
    if isinstance(one, str):
        return _same_text(one, other, thresholds)
    return bool(one == other)
