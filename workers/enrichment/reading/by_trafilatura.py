"""Finds a page's main text with trafilatura, an optional package. Runs in a member of the pool.

Trafilatura only shows which lines of the visible text are the main text. It also reads text from attributes and
scripts, but the model gets only visible lines. Tables and lists keep their form.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import trafilatura
from lxml import etree
from trafilatura.external import jt_stoplist_init

MAX_TAGS: Final = 6000
"""Cap on a page's tags, since trafilatura's time grows with their square: 9,500 links in a paragraph take a second."""
MAX_CHARS: Final = 1_000_000
"""Cap on a page's code points, which bounds the memory of trafilatura's copies."""
_SPANS: Final = ("colspan", "rowspan")
"""Attributes that are removed, because they can turn one cell into a thousand cells in trafilatura's tables."""
_RUN_WORDS: Final = 3
_LEAST_SHARE: Final = 0.5
_WORD: Final = re.compile(r"\w+")

jt_stoplist_init()  # reads the word lists now, because a confined process cannot open files


def main_lines(page: str, visible: str) -> str:
    """Return the visible lines that trafilatura takes for the page's main text, without readers' comments.

    Return an empty text if trafilatura finds none or fails, or if the page is above one of the caps.
    """
    if page.count("<") > MAX_TAGS or len(page) > MAX_CHARS:
        return ""
    try:
        tree = trafilatura.load_html(page)
        etree.strip_attributes(tree, *_SPANS)
        # "Recall" takes two thirds of the usual mode's time, since the usual mode extracts short texts twice.
        found = trafilatura.extract(tree, include_comments=False, favor_recall=True)
    except Exception:  # lxml or trafilatura has a defect, or too little memory: resiliparse's text is used then
        return ""
    return _lines_in(visible, found) if found else ""


def _lines_in(visible: str, found: str) -> str:
    """Return each visible line for which at least half of its runs of words are in the found text.

    Each run of the found text is matched to one line only. A line with too few words for a run must equal a found line.
    """
    runs = Counter(_runs(_words(found)))
    short = Counter(tuple(_words(line)) for line in found.splitlines())
    chosen = []
    for line in visible.split("\n"):
        words = _words(line)
        parts, known = (_runs(words), runs) if len(words) >= _RUN_WORDS else ([tuple(words)], short)
        if not words or sum(known[part] > 0 for part in parts) >= _LEAST_SHARE * len(parts):
            known.subtract(parts)
            chosen.append(line)
    return "\n".join(chosen)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[at:] for at in range(_RUN_WORDS)), strict=False))
