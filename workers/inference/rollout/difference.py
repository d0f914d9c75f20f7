"""The difference of two answers to the same prompt: 0 for equal answers, 1 for different ones.

Answers in different words may mean the same, by an embedding model. But an embedding hardly shows a negation, another
number or two exchanged names: MiniLM gives "Alice sued Bob" and "Bob sued Alice" a cosine of 0.996. So each sentence
needs a counterpart in the other answer: a sentence with a near embedding and the same numbers. By the rules of
`workers.enrichment.answering.contradiction`, the two sentences must not contradict each other.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rapidfuzz.distance import Indel

from telemetry.clock import Clock, Deadline
from workers.enrichment.answering.citations import contradict
from workers.enrichment.answering.profile import Profile
from workers.enrichment.choosing.embedder import Embedder
from workers.processes.model_process import ModelAway

_WORD: Final = re.compile(r"[+-]?\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[<>=%]")
"""Matches a number with its sign, a character of a script without spaces, a word, or a sign with a meaning."""
_FEW_WORDS: Final = 8
"""Texts with fewer words are equal only if all their words are, because one changed word makes another answer."""
_MOST_WORDS: Final = 20_000
"""Cap on the words of each text that are compared: the time grows with the square of their number."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, or the code of the error in its place."""

    text: str | None
    code: str | None = None


def difference(one: Said, other: Said, *, is_json: bool, profile: Profile) -> float:
    """Return 0 if the answers are equal, else 1. JSON is compared by its fields, and other texts by their words.

    Two failures with the same code are equal. The profile has the bounds within which numbers and texts are equal.
    """
    if one.text is None or other.text is None:
        return float((one.text, one.code) != (other.text, other.code))
    if one.text == other.text:
        return 0.0
    if is_json:
        try:
            # `parse_int` is float, because int() would refuse a valid long number.
            ours, theirs = (json.loads(text, parse_int=float) for text in (one.text, other.text))
            return float(not _same_json(ours, theirs, profile))
        except (ValueError, RecursionError):
            pass
    return float(not _same_text(one.text, other.text, profile))


def similarity(one: list[str], other: list[str]) -> float:
    """Return the part of both texts' words that their longest common subsequence covers, 0 to 1 (rapidfuzz's Indel)."""
    return Indel.normalized_similarity(one[:_MOST_WORDS], other[:_MOST_WORDS])


def words(text: str) -> list[str]:
    """Return the words without case, width and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _same_text(one: str, other: str, profile: Profile) -> bool:
    ours, theirs = words(one), words(other)
    if ours == theirs:
        return bool(ours) or one.strip() == other.strip()
    if min(len(ours), len(theirs)) < _FEW_WORDS:
        return False
    return similarity(ours, theirs) >= profile.equal_similarity


def _same_json(one: Any, other: Any, profile: Profile) -> bool:
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
        elif not _same_leaf(ours, theirs, profile):
            return False
    return True


def _same_leaf(one: Any, other: Any, profile: Profile) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=profile.equal_numbers, abs_tol=1e-9) or (one != one and other != other)
    if isinstance(one, str):
        return _same_text(one, other, profile)
    return bool(one == other)


MAX_CHARS: Final = 20_000
"""Cap on the characters of each answer. Longer answers are compared by words alone."""
MAX_SENTENCES: Final = 64
"""Cap on the sentences of each answer. A comparison's time grows with the product of the two numbers of sentences."""
MAX_SENTENCE_BYTES: Final = 400
"""Cap on a sentence: about 100 tokens of English. An embedding model ignores the end of a longer text; MiniLM reads 256
tokens."""
MODEL_SECONDS: Final = 30.0
"""Time limit of a comparison, even if the model has to be loaded again first."""
PAUSE_SECONDS: Final = 1.0

_END: Final = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")  # noqa: RUF001 - full stops of Chinese and Japanese
_NAMES_A_VALUE: Final = re.compile(r"[\d<>=%]")


class MeaningUnknown(Exception):  # noqa: N818 - named after the event
    """The embedding model gave no answer in time."""


class Meaning:
    """Compares answers with `embedder`, one pair at a time: many requests would evict each other from its queue."""

    def __init__(self, embedder: Embedder, clock: Clock, seconds: float = MODEL_SECONDS) -> None:
        self._embedder = embedder
        self._clock = clock
        self._seconds = seconds
        self._turn = asyncio.Lock()

    async def is_same(self, one: str, other: str, least: float) -> bool:
        """True if each sentence of both texts has a counterpart with a cosine of at least `least`.

        False for JSON, and for texts beyond the caps of this module. Raises MeaningUnknown.
        """
        ours, theirs = _sentences(one), _sentences(other)
        if not ours or not theirs:
            return False
        async with self._turn:
            deadline = Deadline.after(self._clock, self._seconds)
            return await self._have_counterparts(ours, theirs, least, deadline) and (
                await self._have_counterparts(theirs, ours, least, deadline)
            )

    async def _have_counterparts(
        self, ours: Sequence[str], theirs: Sequence[str], least: float, deadline: Deadline
    ) -> bool:
        known = {tuple(words(sentence)) for sentence in theirs}
        for sentence in ours:
            if tuple(words(sentence)) in known:
                continue
            cosines = await self._cosines(sentence, theirs, deadline)
            nearest = max(range(len(theirs)), key=cosines.__getitem__)
            if cosines[nearest] < least or not await asyncio.to_thread(_agree, sentence, theirs[nearest]):
                return False
        return True

    async def _cosines(self, sentence: str, others: Sequence[str], deadline: Deadline) -> list[float]:
        """Return the cosines; if the model's process is lost, wait until the model is loaded again."""
        while not deadline.passed:
            try:
                found = await self._embedder.similarities(sentence, others, deadline.remaining)
            except ModelAway:
                await asyncio.sleep(min(PAUSE_SECONDS, deadline.remaining))
            else:
                if len(found) == len(others):
                    return found
        raise MeaningUnknown


def _sentences(text: str) -> list[str]:
    """Return the sentences that have words; no sentences for JSON, such as tool calls, or for texts beyond the caps."""
    if len(text) > MAX_CHARS or _is_json(text):
        return []
    found = [sentence.strip() for sentence in _END.split(text) if words(sentence)]
    is_short = all(len(sentence.encode("utf-8", "replace")) <= MAX_SENTENCE_BYTES for sentence in found)
    return found if is_short and len(found) <= MAX_SENTENCES else []


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_int=float), dict | list)
    except (ValueError, RecursionError):
        return False


def _agree(one: str, other: str) -> bool:
    """True if both sentences have the same numbers and signs, and neither contradicts the other."""
    return _values(one) == _values(other) and not contradict(one, other)


def _values(sentence: str) -> list[str]:
    return sorted(word for word in words(sentence) if _NAMES_A_VALUE.search(word))
