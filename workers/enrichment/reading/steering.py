"""Names the ways in which a page tries to steer the model that reads it. Runs in a member of the pool; pure.

The names are labels for the result's reader and for the model. Safety does not depend on these labels: any page's text
stays inside a quotation (see `grounding`), and links in the text stay out of the answer (see `links`). An article about
such attacks is labelled too.
"""

from __future__ import annotations

import html
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workers.enrichment.reading.charset import decode

SCANNED_CHARS: Final = 200_000
"""Cap on the code points of a page that are scanned."""

_SCANNED_BYTES: Final = 4 * SCANNED_CHARS

_BEFORE_CHARS: Final = 60
_BEHIND_CHARS: Final = 250
"""Characters around a telltale word that are searched; no pattern reaches farther."""

_SPACES: Final = re.compile(r"\s+")
_TAG: Final = re.compile(r"<(/?[a-zA-Z][^<>]{0,5000})>")
_TOLD: Final = re.compile(r"""\b(?:alt|title|content|aria-label|placeholder|summary)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
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


def steering_of_page(body: bytes, media_type: str, charset: str | None, title: str | None, text: str) -> list[str]:
    """Return the `steering` of a page's title, text and markup. Text hidden from people counts as well."""
    is_markup = "html" in media_type or not media_type
    markup = told_by_markup(decode(body[:_SCANNED_BYTES], charset)) if is_markup else ""
    return steering(title or "", text, markup)


def steering(*texts: str) -> list[str]:
    """Return the names of the ways in which a page's texts try to steer the model, in a fixed order."""
    found = {way for text in texts for way in _ways(text[:SCANNED_CHARS])}
    return [way for way in (*_NAMES, _INVISIBLE) if way in found]


def told_by_markup(markup: str) -> str:
    """Return the markup's text with hidden text, comments and descriptions, but without scripts and styles."""
    markup = markup[:SCANNED_CHARS]
    for name in ("script", "style"):
        markup = _without(markup, name)
    return html.unescape(_TAG.sub(lambda tag: f" {' '.join(map(''.join, _TOLD.findall(tag.group(1))))} ", markup))


def _without(markup: str, name: str) -> str:
    kept, position = [], 0
    while (start := markup.find(f"<{name}", position)) >= 0:
        kept.append(markup[position:start])
        end = markup.find(f"</{name}", start)
        position = end if end >= 0 else len(markup)
    return "".join([*kept, markup[position:]])


def _ways(text: str) -> list[str]:
    unseen = ["".join(chr(ord(letter) - 0xE0000) for letter in run) for run in _TAG_LETTERS.findall(text)]
    versions = [_readable(version) for version in (text, *unseen)]
    found = [way.name for version in versions for way in _WAYS if _shows(version, way)]
    return [*found, _INVISIBLE] if unseen else found


def _shows(text: str, way: _Way) -> bool:
    return any(way.pattern.search(text, start, end) for start, end in _around(text, way.words))


def _around(text: str, words: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the spans of the text around the words, as start and end."""
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
    """Unify the spelling: fold compatibility forms and case, remove format characters, and collapse spaces."""
    return _SPACES.sub(" ", _FORMAT.sub("", unicodedata.normalize("NFKC", text)).casefold())
