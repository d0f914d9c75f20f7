"""Names the ways in which passages try to steer the model that reads them. Pure.

Only passages that the model gets are checked: steering text elsewhere on the page has no effect.

The names are labels for the result's reader and for the model. Safety does not depend on these labels. The text
of every page stays inside a quotation (see `grounding`), and links in the text stay out of the answer (see `links`). An
article about such attacks is labelled too.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workers.screening.plain import latinised

SCANNED_CHARS: Final = 200_000
"""The number of code points that are searched at the start of each text."""

_BEFORE_CHARS: Final = 60
_BEHIND_CHARS: Final = 250
"""The characters before and after the start of a telltale word that are searched. No pattern is longer."""

_SPACES: Final = re.compile(r"\s+")
_FORMAT: Final = re.compile("[\u00ad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_TAG_LETTERS: Final = re.compile("[\U000e0020-\U000e007e]{4,}")


@dataclass(frozen=True, slots=True)
class _Way:
    name: str
    words: tuple[str, ...]
    pattern: re.Pattern[str]


def _load() -> tuple[_Way, ...]:
    ways = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["way"]
    return tuple(_Way(one["name"], tuple(one["words"]), re.compile("|".join(one["patterns"]))) for one in ways)


_WAYS: Final = _load()
_NAMES: Final = tuple(dict.fromkeys(way.name for way in _WAYS))
_INVISIBLE: Final = "writes in invisible characters"


def steering(*texts: str) -> list[str]:
    """Return the names of the ways in which a page's texts try to steer the model, in a fixed order."""
    found = {way for text in texts for way in _ways(text[:SCANNED_CHARS])}
    return [way for way in (*_NAMES, _INVISIBLE) if way in found]


def _ways(text: str) -> list[str]:
    unseen = ["".join(chr(ord(letter) - 0xE0000) for letter in run) for run in _TAG_LETTERS.findall(text)]
    versions = [_readable(version) for version in (text, *unseen)]
    found = [way.name for version in versions for way in _WAYS if _shows(version, way)]
    return [*found, _INVISIBLE] if unseen else found


def _shows(text: str, way: _Way) -> bool:
    return any(way.pattern.search(text, start, end) for start, end in _around(text, way.words))


def _around(text: str, words: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the start and end of each span of the text around these telltale words."""
    spans: list[tuple[int, int]] = []
    for place in sorted(place for word in words for place in _places(text, word)):
        start, end = max(0, place - _BEFORE_CHARS), min(len(text), place + _BEHIND_CHARS)
        if spans and start <= spans[-1][1]:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def _places(text: str, word: str) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + _BEFORE_CHARS)


def _readable(text: str) -> str:
    """Unify the spelling: fold compatibility forms, case and look-alikes, remove format characters, collapse spaces."""
    return _SPACES.sub(" ", latinised(_FORMAT.sub("", unicodedata.normalize("NFKC", text)).casefold()))
