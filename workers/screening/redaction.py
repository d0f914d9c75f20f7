"""Puts markers such as `[redacted:card]` in place of matches.

The worker screens each text again after the gateway has redacted it. Markers in the text are left as they are, and a
match inside a marker is ignored. So screening a redacted text changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Cut(NamedTuple):
    """A place of a text, [start, end), that a marker replaces."""

    start: int
    end: int
    marker: str


def marker(label: str) -> str:
    """Return the marker with this label: the kind of personal data, or the rule's name."""
    return f"[redacted:{label}]"


class Markers:
    """Finds the markers of all rules in a text."""

    def __init__(self, labels: Iterable[str]) -> None:
        alternatives = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
        self._pattern = re.compile(rf"\[redacted:(?:{alternatives})\]") if alternatives else None

    def places(self, text: str) -> list[Cut]:
        """Return the places of the markers in a text, in order."""
        if self._pattern is None or "[redacted:" not in text:
            return []
        return [Cut(*found.span(), found[0]) for found in self._pattern.finditer(text)]


def outside(spans: Iterable[Cut], markers: Sequence[Cut]) -> list[Cut]:
    """Return the spans in order, without those that lie inside markers.

    A span that cuts a marker includes the whole marker.
    """
    kept: list[Cut] = []
    number = 0
    for span in sorted(spans):
        while number < len(markers) and markers[number].end <= span.start:
            number += 1
        touched = []
        for place in markers[number:]:
            if place.start >= span.end:
                break
            touched.append(place)
        if sum(min(span.end, place.end) - max(span.start, place.start) for place in touched) == span.end - span.start:
            continue
        if touched:
            span = Cut(min(span.start, touched[0].start), max(span.end, touched[-1].end), span.marker)
        kept.append(span)
    return kept


def merged(spans: Iterable[Cut]) -> list[Cut]:
    """Return the spans in order, with overlapping and touching ones joined under the marker of the first."""
    joined: list[Cut] = []
    for span in sorted(spans, key=lambda each: (each.start, -each.end)):
        if joined and span.start <= joined[-1].end:
            last = joined[-1]
            joined[-1] = Cut(last.start, max(last.end, span.end), last.marker)
        else:
            joined.append(span)
    return joined


def redacted(text: str, cuts: Sequence[Cut]) -> str:
    """Return the text with each cut's marker in its place. `cuts` are in order and do not overlap."""
    pieces: list[str] = []
    done = 0
    for cut in cuts:
        pieces += (text[done : cut.start], cut.marker)
        done = cut.end
    return "".join((*pieces, text[done:]))


def redacted_parts(parts: Sequence[str], cuts: Sequence[Cut]) -> tuple[str, ...]:
    """Return a message's parts with each cut's marker in its place.

    The cuts' places are offsets in the parts' joined text. A cut over several parts leaves one marker.
    """
    changed: list[str] = []
    start = first = 0
    marked = -1
    for part in parts:
        end = start + len(part)
        while first < len(cuts) and cuts[first].end <= start:
            first += 1
        inside: list[Cut] = []
        for number in range(first, len(cuts)):
            cut = cuts[number]
            if cut.start >= end:
                break
            text = cut.marker if number > marked else ""
            inside.append(Cut(max(cut.start, start) - start, min(cut.end, end) - start, text))
            marked = number
        changed.append(redacted(part, inside))
        start = end + 1
    return tuple(changed)
