"""Finds the words of a source on which a sentence rests. Pure.

A quote names its place by the words before and after it, as a TextQuoteSelector does (W3C, "Web Annotation Data Model",
section 4.2.4). An offset would be right only for one version of the page and of this program.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from schemas.result import Quote
from workers.enrichment.answering.grounding import visible
from workers.enrichment.answering.links import LINK_REMOVED, URL

WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001
CONTEXT_CHARS: Final = 32
"""The maximum number of code points of a quote's prefix, and of its suffix."""
MAX_QUOTE_CHARS: Final = 500


def words(text: str) -> tuple[str, ...]:
    """Return the text's words and numbers, in lower case, with compatibility characters replaced (NFKC).

    In scripts without spaces, each character is one word. Links are left out, since most links are removed from an
    answer but remain in its sources. Invisible characters are left out, since the model does not see them.
    """
    return tuple(WORD.findall(unicodedata.normalize("NFKC", without_links(visible(text))).casefold()))


def without_links(text: str) -> str:
    """Replace each link, and each mark of a removed link, by a space."""
    return URL.sub(" ", text.replace(LINK_REMOVED, " "))


def contains(text: str, quoted: str) -> bool:
    """True if the quoted words stand in the text one after the other. Case, punctuation and links are ignored."""
    wanted = words(quoted)
    return bool(wanted) and f" {' '.join(wanted)} " in _line(text)


@lru_cache(maxsize=8)
def _line(text: str) -> str:
    """Return the text as one line of words.

    The last lines are cached: many quotes are looked for in one page, and a page may have megabytes.
    """
    return f" {' '.join(words(text))} "


class Quoter:
    """Quotes the sources of one answer. Each source is split into words once, for all sentences of the answer."""

    def __init__(self, sources: Mapping[int, Sequence[str]]) -> None:
        self._sources = sources
        self._placed: dict[int, list[_Placed]] = {}

    def quote(self, number: int, *runs: str) -> Quote | None:
        """Return the first of these runs of words that a passage of source `number` has; None if it has none."""
        if number not in self._placed:
            self._placed[number] = [_Placed.of(passage) for passage in self._sources[number]]
        for said in map(words, runs):
            for passage in self._placed[number]:
                if (at := passage.run(said)) is not None:
                    return passage.quote(at, at + len(said))
        return None


@dataclass(frozen=True, slots=True)
class _Placed:
    """A passage, split into words, each with its span in code points of the passage."""

    text: str
    spans: tuple[tuple[int, int], ...]
    line: str
    """All words in one line, with a space before and after each word."""

    @classmethod
    def of(cls, text: str) -> _Placed:
        """Split the text as `words` does. Characters are folded one by one, so that each word's span is known."""
        line, origins = text, list(range(len(text)))
        if not text.isascii():
            shown = [(at, seen) for at, character in enumerate(text) if (seen := visible(character))]
            line, origins = "".join(seen for _, seen in shown), [at for at, _ in shown]
        line = line.replace(LINK_REMOVED, " " * len(LINK_REMOVED))
        line = URL.sub(lambda link: " " * len(link.group()), line)
        if text.isascii():
            line = line.lower()
        else:
            folded = [unicodedata.normalize("NFKC", character).casefold() for character in line]
            origins = [at for at, piece in zip(origins, folded, strict=True) for _ in piece]
            line = "".join(folded)
        found = list(WORD.finditer(line))
        spans = tuple((origins[one.start()], origins[one.end() - 1] + 1) for one in found)
        words = tuple(one.group() for one in found)
        return cls(text, spans, f" {' '.join(words)} ")

    def run(self, said: Sequence[str]) -> int | None:
        """Return the index at which the passage first has exactly these words in a row; None if it never has."""
        at = self.line.find(f" {' '.join(said)} ") if said else -1
        return self.line.count(" ", 0, at + 1) - 1 if at >= 0 else None

    def quote(self, first: int, behind: int) -> Quote:
        """Quote the passage from word `first` up to word `behind`, which is left out.

        A long quote is cut between two words.
        """
        start = self.spans[first][0]
        ends = [end for _, end in self.spans[first:behind] if end <= start + MAX_QUOTE_CHARS]
        end = ends[-1] if ends else start + MAX_QUOTE_CHARS
        prefix, suffix = self.text[max(0, start - CONTEXT_CHARS) : start], self.text[end : end + CONTEXT_CHARS]
        return Quote(exact=self.text[start:end], prefix=prefix, suffix=suffix)
