"""CSS declarations that make an element invisible."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from workers.enrichment.reading.color import are_alike, ground_of, is_clear
from workers.enrichment.reading.lengths import NUMBER, pixels, ratio

FAR_PX: Final = 500.0
"""Distance in pixels; a larger negative offset puts an element outside of every page."""
DISPUTED: Final = frozenset(("display", "visibility", "opacity"))
"""Ways of hiding that another rule can undo."""
_FAINT: Final = 0.05
_TINY_PX: Final = 2.0

_FONT_SIZE: Final = re.compile(rf"(?:^|\s)({NUMBER}(?:[a-z]+|%)|0+(?:\.0*)?)(?=\s|/|$)")
_FUNCTION: Final = re.compile(r"([a-z0-9]+)\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_BETWEEN: Final = re.compile(r"[\s,]+")
_SIDES: Final = ("top", "right", "bottom", "left")
_ALWAYS: Final = ("text-indent", "margin-left", "margin-top", "margin-inline-start", "margin-block-start")
_MOVABLE: Final = frozenset(("absolute", "fixed", "relative", "sticky"))
_PLACED: Final = (*_SIDES, *(f"inset-{axis}-{end}" for axis in ("inline", "block") for end in ("start", "end")))
_CLIPPED: Final = re.compile(
    r"rect\([01](?:px)?[, ][01](?:px)?[, )]|inset\((?:5\d|[6-9]\d|1\d\d)(?:\.\d+)?%|(?:circle|ellipse)\(0[a-z%]*[ )]"
    r"|polygon\([^,]*(?:,[^,]*)?\)"
)

_MAY_HIDE: Final = re.compile(
    r"none|hidden|collapse|opacity|zoom|scale|clip|transparent|background|overflow|-\s*[\d.]|\\|/\*"
    r"|\b(?:var|calc|min|max|clamp|rgba?|hsla?|hwb|lab|lch|oklab|oklch|color|matrix(?:3d)?)\("
    r"|color\s*:\s*#(?:[\da-f]{4}|[\da-f]{8})(?![\da-f])"
    r"|font(?:-size)?\s*:[^;]*?(?<![\d.])(?:[01]|\.\d)(?:\.\d*)?(?:[a-z%\s;/]|$)",
    re.IGNORECASE,
)

Values = Mapping[str, str]
"""Property to value, as `css.declarations` gives them."""


def may_hide(style: str) -> bool:
    """True if a style may hide something. Most of a page's styles, up to tens of thousands, need no parsing."""
    return _MAY_HIDE.search(style) is not None


def hidden_by(values: Values) -> frozenset[str]:
    """Return the ways in which these declarations hide an element; none if the element is seen."""
    return frozenset(way for way, names, is_hidden in _WAYS if not names.isdisjoint(values) and is_hidden(values))


def _is_invisible(values: Values) -> bool:
    return values.get("visibility") in ("hidden", "collapse")


def _is_faint(values: Values) -> bool:
    shares = [ratio(values.get("opacity"))]
    shares += [ratio(argument) for name, argument in _functions(values.get("filter")) if name == "opacity"]
    return any(share is not None and share < _FAINT for share in shares)


def _is_tiny(values: Values) -> bool:
    font = _FONT_SIZE.search(values.get("font", ""))
    sizes = [pixels(values.get("font-size")), pixels(font.group(1)) if font is not None else None]
    scales = [ratio(values.get("zoom")), *map(ratio, _BETWEEN.split(values.get("scale", "")))]
    scales += [
        ratio(part)
        for name, arguments in _functions(values.get("transform"))
        if name.startswith("scale")
        for part in _BETWEEN.split(arguments)
    ]
    return any(size is not None and abs(size) < _TINY_PX for size in sizes) or any(
        scale is not None and abs(scale) < _FAINT for scale in scales
    )


def _is_colourless(values: Values) -> bool:
    """True for text without a visible colour, unless its background fills the letters, as in modern headings."""
    if "text" in values.get("background-clip", "") or values.get("background", "").endswith("text"):
        return False
    background = values.get("background-color") or values.get("background")
    ground = ground_of(background) if background else None
    colors = [values[name] for name in ("color", "text-fill-color") if name in values]
    return any(is_clear(color) or (ground is not None and are_alike(color, ground)) for color in colors)


def _is_outside(values: Values) -> bool:
    names = _ALWAYS + _PLACED if values.get("position") in _MOVABLE else _ALWAYS
    places = {**_sides(values, "inset", ""), **_sides(values, "margin", "margin-"), **values}
    moved = [pixels(places.get(name)) for name in names if name != "margin-left"]
    # A negative margin with as much padding widens the background; the text stays in place.
    padding = {**_sides(values, "padding", "padding-"), **values}.get("padding-left")
    moved.append((pixels(places.get("margin-left")) or 0.0) + (pixels(padding) or 0.0))
    moved += [pixels(part) for part in _BETWEEN.split(values.get("translate", "")) if not part.endswith("%")]
    for name, arguments in _functions(values.get("transform")):
        if name.startswith(("translate", "matrix")):
            moved += [pixels(part) for part in _BETWEEN.split(arguments) if not part.endswith("%")]
    return any(distance is not None and distance < -FAR_PX for distance in moved)


def _sides(values: Values, shorthand: str, prefix: str) -> dict[str, str]:
    """Expand a shorthand of one to four values, as for `margin`, to its sides: top, right, bottom, left."""
    parts = _split(values.get(shorthand, ""))
    if not 1 <= len(parts) <= len(_SIDES):
        return {}
    top, right, bottom, left = {1: (0, 0, 0, 0), 2: (0, 1, 0, 1), 3: (0, 1, 2, 1), 4: (0, 1, 2, 3)}[len(parts)]
    return {f"{prefix}{side}": parts[at] for side, at in zip(_SIDES, (top, right, bottom, left), strict=True)}


def _split(value: str) -> list[str]:
    """Split at spaces outside of brackets."""
    return re.findall(r"(?:[^\s()]|\((?:[^()]|\([^()]*\))*\))+", value)


def _is_clipped(values: Values) -> bool:
    clip = values.get("clip", "") + " " + values.get("clip-path", "")
    return _CLIPPED.search(re.sub(r"\s*([(,])\s*", r"\1", clip)) is not None


def _is_collapsed(values: Values) -> bool:
    cut = " ".join(values.get(name, "") for name in ("overflow", "overflow-x", "overflow-y"))
    if "hidden" not in cut and "clip" not in cut:
        return False
    sizes = (pixels(values.get(name)) for name in _SIZES)
    return any(size is not None and 0 <= size <= 1 for size in sizes)


def _functions(value: str | None) -> list[tuple[str, str]]:
    return _FUNCTION.findall(value) if value else []


_SIZES: Final = ("height", "width", "max-height", "max-width", "block-size", "inline-size", "max-block-size")
_PLACES: Final = (*_ALWAYS, *_PLACED, "inset", "margin", "translate", "transform")
_WAYS: Final[tuple[tuple[str, frozenset[str], Callable[[Values], bool]], ...]] = (
    ("display", frozenset(("display",)), lambda values: values["display"] == "none"),
    ("visibility", frozenset(("visibility",)), _is_invisible),
    ("content", frozenset(("content-visibility",)), lambda values: values["content-visibility"] == "hidden"),
    ("opacity", frozenset(("opacity", "filter")), _is_faint),
    ("size", frozenset(("font-size", "font", "zoom", "scale", "transform")), _is_tiny),
    ("color", frozenset(("color", "text-fill-color")), _is_colourless),
    ("place", frozenset(_PLACES), _is_outside),
    ("clip", frozenset(("clip", "clip-path")), _is_clipped),
    ("box", frozenset(_SIZES), _is_collapsed),
)
"""Ways of hiding: a name, properties and a test. The test applies if one of the properties is declared."""
