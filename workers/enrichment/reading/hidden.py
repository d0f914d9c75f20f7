"""Removes elements that a page's reader would not see.

Hidden text is meant for machines, and often tries to mislead models. Attributes, inline styles and conventional class
names such as "sr-only" show which elements are hidden. Style sheets are not read, because a page can hide text in more
ways than a reader of style sheets knows. On public sets of pages, such a reader removed more visible text than hidden
text. The answer's safety rests on the marks around the sources, on neutralised tokens and on the removal of unknown
links. All three apply to visible and hidden text alike.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from selectolax.lexbor import LexborHTMLParser

_FAINT: Final = 0.05
_TINY_PX: Final = 2.0
_FAR_PX: Final = 500.0
"""An element with a negative offset of more than this is outside of every page."""
_PX: Final = {"px": 1.0, "pt": 4 / 3, "em": 16.0, "rem": 16.0, "ex": 8.0, "vw": 10.0, "vh": 10.0, "": 1.0}
_MAY_HIDE: Final = re.compile(
    r"none|hidden|collapse|opacity|zoom|scale|clip|color|overflow|-\s*[\d.]|\\|/\*|font", re.IGNORECASE
)
_COMMENT: Final = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_ESCAPE: Final = re.compile(r"\\([0-9a-f]{1,6})\s?", re.IGNORECASE)
_DECLARATION: Final = re.compile(
    r"""([a-z-]+)\s*:\s*((?:[^;"'(]|"[^"]*"|'[^']*'|\((?:[^()]|\([^()]*\))*\))*)""", re.IGNORECASE
)
_LENGTH: Final = re.compile(r"(-?(?:\d+(?:\.\d*)?|\.\d+))(px|pt|r?em|ex|vw|vh|%)?(?![\w.])")
_SCALED: Final = re.compile(r"scale[xy3d]*\(([^)]*)\)")
_MOVED: Final = re.compile(r"(?:translate[xy3d]*|matrix)\(([^)]*)\)")
_CLIPPED: Final = re.compile(
    r"rect\([01](?:px)?[, ]+[01](?:px)?[, )]|inset\((?:5\d|[6-9]\d|1\d\d)(?:\.\d+)?%|circle\(0"
    r"|polygon\([^,]*(?:,[^,]*)?\)"
)
_CLEAR: Final = re.compile(r"transparent|(?:rgb|hsl)a?\(.*[,/]\s*(?:0|0?\.0\d*|0%)\s*\)|#\w{3}0|#\w{6}00")
_PALE: Final = re.compile(r"white|snow|ivory|#f{3}|#(?:f[a-f0-9]){3}|rgba?\((?:\s*2[45]\d\s*,?){3}.*\)")
_MOVING: Final = ("text-indent", "margin", "margin-left", "margin-top", "translate")
_PLACED: Final = ("left", "top", "right", "bottom", "inset")
_SIZES: Final = ("height", "width", "max-height", "max-width")


@lru_cache(maxsize=4096)
def hides(style: str) -> bool:
    """True if the inline style hides the text of its element."""
    if _MAY_HIDE.search(style) is None:
        return False
    values = _declarations(style)
    return (
        values.get("display") == "none"
        or values.get("visibility") in ("hidden", "collapse")
        or values.get("content-visibility") == "hidden"
        or _CLIPPED.search(values.get("clip", "") + values.get("clip-path", "")) is not None
        or _is_tiny(values)
        or _is_outside(values)
        or _is_collapsed(values)
        or _is_colourless(values)
    )


@lru_cache(maxsize=4096)
def color_of(style: str) -> str | None:
    """Return the colour that an inline style gives the text; None if it gives no colour."""
    return _declarations(style).get("color") if "color" in style.lower() else None


def is_pale(color: str) -> bool:
    """True if the colour is white or nearly white."""
    return _PALE.fullmatch(color) is not None


def _declarations(style: str) -> dict[str, str]:
    if "\\" in style:
        style = _ESCAPE.sub(lambda code: chr(min(int(code[1], 16), 0x10FFFF)), style)
    found = _DECLARATION.findall(_COMMENT.sub("", style).lower())
    plain = ((name.removeprefix("-webkit-"), value.replace("!important", "").strip()) for name, value in found)
    return dict(plain)


def _is_tiny(values: dict[str, str]) -> bool:
    shares = [values[name] for name in ("opacity", "zoom", "scale") if name in values]
    shares += _SCALED.findall(values.get("transform", "")) + re.findall(r"opacity\(([^)]*)\)", values.get("filter", ""))
    if any(share is not None and abs(share) < _FAINT for share in map(_share, shares)):
        return True
    sizes = _lengths(values.get("font-size", "")) or _lengths(values.get("font", ""))[:1]
    return any(abs(size) < _TINY_PX for size in sizes)


def _is_outside(values: dict[str, str]) -> bool:
    names = _MOVING + _PLACED if values.get("position", "static") != "static" else _MOVING
    moved = [length for name in names for length in _lengths(values.get(name, ""))]
    moved += [length for part in _MOVED.findall(values.get("transform", "")) for length in _lengths(part)]
    # A negative margin with as much padding only widens the background, and the text stays in place.
    return any(length < -_FAR_PX for length in moved) and "padding" not in values


def _is_collapsed(values: dict[str, str]) -> bool:
    is_cut = any("hidden" in values.get(name, "") for name in ("overflow", "overflow-x", "overflow-y"))
    return is_cut and any(0 <= size <= 1 for name in _SIZES for size in _lengths(values.get(name, ""))[:1])


def _is_colourless(values: dict[str, str]) -> bool:
    """True if the text is transparent or has the background's colour.

    False if the background is clipped to the letters.
    """
    if "text" in values.get("background-clip", ""):
        return False
    colors = [values[name] for name in ("color", "text-fill-color") if name in values]
    ground = values.get("background-color") or values.get("background")
    is_pale_ground = ground is not None and is_pale(ground)
    return any(_CLEAR.fullmatch(one) or one == ground or (is_pale_ground and is_pale(one)) for one in colors)


def _lengths(value: str) -> list[float]:
    """Return the lengths in a value, in CSS pixels. Percentages depend on other elements and are left out."""
    return [float(number) * _PX[unit] for number, unit in _LENGTH.findall(value) if unit != "%"]


def _share(value: str) -> float | None:
    number = re.match(r"\s*(-?[\d.]+)(%?)", value)
    try:
        return float(number[1]) / (100 if number[2] else 1) if number else None
    except ValueError:
        return None


LEAST_SEEN: Final = 0.3
"""If less than this share of a page's text would stay, no hidden text is removed, since a script may show this text."""
_NO_TEXT: Final = "script, style, template, iframe, object, embed, svg, canvas, head > :not(title)"
_UNWRAPPED: Final = ["noscript", "time", "b", "strong", "em"]
"""Elements that are replaced by their content: resiliparse leaves out `time`, and single Chinese characters in bold."""
_UNSEEN: Final = "[hidden], input[type='hidden'], dialog:not([open]), [popover]"
_CLASS_NAMES: Final = (
    "hidden hide is-hidden d-none display-none invisible sr-only visually-hidden visuallyhidden screen-reader-text "
    "screen-reader-only screenreader-only element-invisible offscreen off-screen u-hidden"
)
_CLASSES: Final = ", ".join(f".{name}" for name in _CLASS_NAMES.split())
_SHOWN_ON_SOME_SCREENS: Final = re.compile(
    r"(?:(?:xs|sm|md|lg|\d?xl|portrait|landscape|(?:min|max)-[^:\s]+):)+!?"
    r"(?:block|flex|grid|table[a-z-]*|contents|flow-root|list-item|inline(?:-[a-z]+)?|visible|not-sr-only)"
    r"|d-(?:sm|md|lg|xl|xxl)-(?!none)[a-z-]+|(?:show-for|visible)-[a-z-]+"
)
"""Classes of Tailwind, Bootstrap and Foundation that show an element on some screens even if another class hides it."""
_MARK: Final = "data-postback-unseen"
_OPENED: Final = frozenset(("tabpanel", "region"))
"""Roles of panels that a click on a tab or on a question opens (WAI-ARIA Authoring Practices)."""
_OPENING: Final = "[aria-controls][aria-expanded]:not([aria-haspopup])"
"""Selects buttons that show and hide other elements, unless these are menus (WAI-ARIA 1.2, `aria-controls`)."""
_ROOTS: Final = frozenset(("html", "body", "main"))
"""Elements that are never removed: some pages hide them until a script has run, but a person sees them."""


def without_hidden(tree: LexborHTMLParser, html: str) -> LexborHTMLParser:
    """Remove elements without text and unseen elements from the page's tree, and return the tree.

    Unseen elements stay if the page has most of its text in them. Text for browsers that run no scripts stays, too.
    """
    tree.unwrap_tags(_UNWRAPPED)
    has_styles = tree.css_first("link[rel~='stylesheet'], style") is not None
    opened = {name for node in tree.css(_OPENING) for name in (node.attributes.get("aria-controls") or "").split()}
    _remove(tree, _NO_TEXT, opened)
    chars = _chars(tree)
    _mark(tree, has_styles)
    _remove(tree, f"{_UNSEEN}, [{_MARK}]", opened)
    if _chars(tree) < LEAST_SEEN * chars:
        tree = LexborHTMLParser(html)
        tree.unwrap_tags(_UNWRAPPED)
        _remove(tree, _NO_TEXT, opened)
    return tree


def _mark(tree: LexborHTMLParser, has_styles: bool) -> None:
    """Mark the elements that styles or classes hide."""
    for node in tree.css("[style]"):
        if hides(node.attributes.get("style") or ""):
            node.attrs[_MARK] = ""
    for node in tree.css(_CLASSES):
        seen = _seen_name(node.attributes.get("class") or "")
        # The extractor of the main text reads class names, so a hiding class must not stay beside a showing class.
        node.attrs[_MARK if seen is None else "class"] = seen or ""
    # White text is marked only if nothing on the page can give it a dark background.
    if not has_styles and tree.css_first("[bgcolor], [background], [style*='background']") is None:
        for node in tree.css("[style*='color'], font[color]"):
            style, color = node.attributes.get("style") or "", node.attributes.get("color") or ""
            if is_pale(color_of(style) or color.strip().lower()):
                node.attrs[_MARK] = ""


def _remove(tree: LexborHTMLParser, selector: str, opened: set[str]) -> None:
    """Remove elements except those with an id in `opened`.

    The order is reversed, so that inner elements are removed before outer elements.
    """
    for node in reversed(tree.css(selector)):
        is_opened = node.attributes.get("role") in _OPENED or node.attributes.get("id") in opened
        if node.tag not in _ROOTS and node.parent is not None and not is_opened:
            node.decompose()


def _chars(tree: LexborHTMLParser) -> int:
    return len(tree.body.text()) if tree.body is not None else 0


def _seen_name(classes: str) -> str | None:
    """Return the class that shows a hidden element on some screens; None if there is none."""
    return next((name for name in classes.lower().split() if _SHOWN_ON_SOME_SCREENS.fullmatch(name)), None)
