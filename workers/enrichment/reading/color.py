"""Tests if CSS colours are visible (CSS Color, level 4): alone, and on a background."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from tinycss2 import color4

PALE: Final = 240 / 255
"""Least value of each channel in a colour that counts as white; PDFs have the same limit."""
_FAINT: Final = 0.05
_ALIKE: Final = 0.06
"""Text is unreadable if each colour channel differs from the background's channel by less than this."""
_WITH_OPACITY: Final = (5, 9)
"""Lengths of `#rgba` and `#rrggbbaa`."""
_LIGHTNESS: Final = {"lab": 100.0, "lch": 100.0, "oklab": 1.0, "oklch": 1.0}
_TOKEN: Final = re.compile(r"[a-z-]+\([^()]*\)|[^\s,]+")
_PICTURE: Final = re.compile(r"url\(|gradient\(|image|element\(")

Color = tuple[float, float, float, float]
"""Red, green, blue and opacity, from 0 to 1."""


@lru_cache(maxsize=4096)
def color_of(value: str) -> Color | None:
    """Parse a colour; None for any other value, and for a colour that depends on surrounding elements."""
    parsed: Any = color4.parse_color(value[:200])
    if parsed is None or isinstance(parsed, str):
        return None
    alpha = float(parsed.alpha if parsed.alpha is not None else 1.0)
    light = _LIGHTNESS.get(parsed.space)
    if light is not None:  # full lightness is white, whatever the hue
        shade = min(1.0, float(parsed[0] or 0.0) / light)
        return (shade, shade, shade, alpha)
    try:
        red, green, blue = (float(part or 0.0) for part in parsed.to("srgb").coordinates)
    except NotImplementedError:
        return None
    return (red, green, blue, alpha)


def is_clear(value: str) -> bool:
    """True if the colour is transparent, or nearly. The parser is skipped for values that have no opacity."""
    may_be = "(" in value or value == "transparent" or (value.startswith("#") and len(value) in _WITH_OPACITY)
    return may_be and _is_faint(value)


def _is_faint(value: str) -> bool:
    color = color_of(value)
    return color is not None and color[3] < _FAINT


def is_pale(value: str) -> bool:
    """True if the colour is white, or nearly."""
    color = color_of(value)
    return color is not None and min(color[:3]) >= PALE


def are_alike(one: str, other: str) -> bool:
    """True if text in one colour is unreadable on the other."""
    if one == other:
        return color_of(one) is not None
    first, second = color_of(one), color_of(other)
    if first is None or second is None or second[3] < 1:
        return False
    return max(abs(a - b) for a, b in zip(first[:3], second[:3], strict=True)) < _ALIKE


def ground_of(background: str) -> str | None:
    """Return the colour in a `background`, or None if the value has a picture or no colour."""
    if _PICTURE.search(background):
        return None
    return next((part for part in reversed(_TOKEN.findall(background)) if color_of(part) is not None), None)
