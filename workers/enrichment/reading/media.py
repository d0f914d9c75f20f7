"""Finds the viewers, desktop or phone, for which a style sheet's block holds (Media Queries, level 4).

A text counts as seen if one of the two viewers sees it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final


@dataclass(frozen=True, slots=True)
class _Viewer:
    width: float
    """CSS pixels."""
    height: float
    features: frozenset[str]
    """Media features that hold for the viewer, except size."""


_COMMON: Final = frozenset(
    ("screen", "all", "color", "prefers-color-scheme: light", "prefers-reduced-motion: no-preference", "update: fast")
)
_DESKTOP: Final = frozenset(("orientation: landscape", "hover", "hover: hover", "any-hover: hover", "pointer: fine"))
_PHONE: Final = frozenset(("orientation: portrait", "hover: none", "any-hover: none", "pointer: coarse"))
_VIEWERS: Final = {
    "desktop": _Viewer(1280, 800, _COMMON | _DESKTOP),
    "phone": _Viewer(390, 844, _COMMON | _PHONE),
}
EVERYBODY: Final = frozenset(_VIEWERS)

_BLOCK: Final = re.compile(r"@(media|layer|supports)\b(.*)", re.IGNORECASE | re.DOTALL)
_CONDITION: Final = re.compile(r"\(\s*([^()]*?)\s*\)")
_PIXELS: Final = {"px": 1.0, "em": 16.0, "rem": 16.0, "": 1.0}
_SIZE: Final = re.compile(r"(min-|max-)?(width|height)\s*:\s*([\d.]+)(px|em|rem|)")
_LENGTH: Final = r"([\d.]+)(px|em|rem|)"
_RANGE: Final = re.compile(rf"(?:{_LENGTH}\s*([<>]=?)\s*)?(width|height)(?:\s*([<>]=?)\s*{_LENGTH})?")


@lru_cache(maxsize=1024)
def viewers_of(prelude: str) -> frozenset[str]:
    """Return the viewers for which an at-rule's block holds; none for print, animations and unknown rules."""
    block = _BLOCK.match(prelude)
    if block is None:
        return frozenset()
    if block.group(1).lower() != "media":
        return EVERYBODY  # `@supports` is taken to ask for features that today's browsers have
    queries = block.group(2).lower().split(",")
    return frozenset(name for name, one in _VIEWERS.items() if any(_holds(query, one) for query in queries))


def _holds(query: str, viewer: _Viewer) -> bool:
    words = " ".join(query.split())
    negated = words.startswith("not ")
    words = words.removeprefix("not ").removeprefix("only ")
    alternatives = [part.split(" and ") for part in words.split(" or ")]
    return any(all(_is_true(part.strip(), viewer) for part in parts) for parts in alternatives) != negated


def _is_true(part: str, viewer: _Viewer) -> bool:
    if part.startswith("not "):
        return not _is_true(part.removeprefix("not "), viewer)
    condition = _CONDITION.fullmatch(part)
    if condition is None:
        return part in viewer.features
    said = re.sub(r"\s*:\s*", ": ", condition.group(1))
    size = _SIZE.fullmatch(said)
    if size is not None:
        return _fits(size, viewer)
    span = _RANGE.fullmatch(said)
    return _lies_within(span, viewer) if span is not None else said in viewer.features


def _fits(size: re.Match[str], viewer: _Viewer) -> bool:
    bound, side, number, unit = size.groups()
    have, wanted = _side(viewer, side), _pixels(number, unit)
    return have >= wanted if bound == "min-" else have <= wanted if bound == "max-" else have == wanted


def _lies_within(span: re.Match[str], viewer: _Viewer) -> bool:
    low, low_unit, before, side, behind, high, high_unit = span.groups()
    have = _side(viewer, side)
    return (before is None or _compares(_pixels(low, low_unit), before, have)) and (
        behind is None or _compares(have, behind, _pixels(high, high_unit))
    )


def _side(viewer: _Viewer, side: str) -> float:
    return viewer.width if side == "width" else viewer.height


def _pixels(number: str, unit: str) -> float:
    return float(number) * _PIXELS[unit] if number.count(".") <= 1 and number != "." else 0.0


def _compares(left: float, sign: str, right: float) -> bool:
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign]
