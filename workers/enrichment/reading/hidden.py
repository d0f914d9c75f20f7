"""Removes elements that a page's reader would not see: these address machines, and often try to mislead them.

Inline styles, the page's own style sheets, attributes, and conventional class names such as "sr-only" show which
elements are hidden.
Style sheets in other files are not fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode

from workers.enrichment.reading.color import ground_of, is_pale
from workers.enrichment.reading.css import declarations
from workers.enrichment.reading.sheets import Sheet
from workers.enrichment.reading.unseen import hidden_by, may_hide

_NEVER_SEEN: Final = (
    "script, style, noscript, template, iframe, object, embed, svg, canvas, head > *, "
    "[hidden], [aria-hidden='true'], input[type='hidden'], dialog:not([open]), [popover]"
)
_CLASS_NAMES: Final = (
    "hidden hide is-hidden d-none display-none invisible sr-only visually-hidden visuallyhidden screen-reader-text "
    "screen-reader-only screenreader-only element-invisible offscreen off-screen u-hidden"
)
_CLASSES: Final = frozenset(_CLASS_NAMES.split())
_SHOWN_ON_SOME_SCREENS: Final = re.compile(
    r"(?:(?:xs|sm|md|lg|\d?xl|portrait|landscape|(?:min|max)-[^:\s]+):)+!?"
    r"(?:block|flex|grid|table[a-z-]*|contents|flow-root|list-item|inline(?:-[a-z]+)?|visible|not-sr-only)"
    r"|d-(?:sm|md|lg|xl|xxl)-(?!none)[a-z-]+|(?:show-for|visible)-[a-z-]+"
)
"""Classes of Tailwind, Bootstrap and Foundation that show an element on some screens, despite a class that hides it."""
_ROOTS: Final = frozenset(("html", "body", "main"))
"""Elements that pages hide until a script has run; a person sees these elements."""
_NO_GROUND: Final = frozenset(("none", "transparent", "inherit", "initial", "unset", "0", "0 0", "no-repeat"))
_MAY_BE_WHITE: Final = re.compile(
    r"color\s*:\s*(?:#[ef]|\w*(?:white|snow|ivory|azure|mint|shell|lace|smoke)|[a-z]+\()|\\|/\*", re.IGNORECASE
)
_MARK: Final = "data-postback-unseen"


def remove_hidden(tree: LexborHTMLParser) -> None:
    """Remove all unseen elements from the tree, in place.

    The elements are marked first, while each rule still finds the ancestors that it names. Removal then starts at the
    page's end, so that inner elements are removed before outer ones.
    """
    sheet = Sheet(tree)
    for node in sheet.hidden():
        node.attrs[_MARK] = ""
    for node in tree.css("[style]"):
        if _hides(node.attributes.get("style") or ""):
            node.attrs[_MARK] = ""
    for node in tree.css("[class]"):
        seen = _seen_name(node.attributes.get("class") or "")
        if seen is None:
            node.attrs[_MARK] = ""
        elif seen:
            node.attrs["class"] = seen
    # A style sheet in another file is not read, and could give white text a dark background.
    if tree.css_first("link[rel~='stylesheet']") is None:
        for node in _white_on_white(tree, sheet):
            node.attrs[_MARK] = ""
    for node in reversed(tree.css(f"{_NEVER_SEEN}, [{_MARK}]")):
        if node.tag not in _ROOTS and node.parent is not None:
            node.decompose()


@lru_cache(maxsize=4096)
def _hides(style: str) -> bool:
    return may_hide(style) and bool(hidden_by(declarations(style).values))


@lru_cache(maxsize=4096)
def _seen_name(classes: str) -> str | None:
    """Return None if these classes hide, "" if they do not, or the class to keep if it shows the element again.

    The main text's extractor reads class names, so a name that hides must not stay beside that class.
    """
    names = classes.lower().split()
    if _CLASSES.isdisjoint(names):
        return ""
    return next((name for name in names if _SHOWN_ON_SOME_SCREENS.fullmatch(name)), None)


def _white_on_white(tree: LexborHTMLParser, sheet: Sheet) -> list[LexborNode]:
    """Return elements with white text, or nearly, for which the page has no darker background."""
    white = [node for node in tree.css("[style], font[color]") if is_pale(_color(node))]
    for selector, values in sheet.declaring("color", "text-fill-color"):
        if is_pale(values.get("color", "")) or is_pale(values.get("text-fill-color", "")):
            white += sheet.matches(selector)
    if not white:
        return []
    grounds = [node for node in tree.css("[style], [bgcolor], [background]") if _has_ground(node)]
    for selector, values in sheet.declaring("background", "background-color", "background-image"):
        if _is_dark(values):
            grounds += sheet.matches(selector)
    below = {node.mem_id for node in grounds}
    return [node for node in white if not any(one.mem_id in below for one in _with_ancestors(node))]


def _color(node: LexborNode) -> str:
    style = node.attributes.get("style") or ""
    own = declarations(style).values.get("color") if _MAY_BE_WHITE.search(style) is not None else None
    return own or (node.attributes.get("color") or "").strip().lower()


def _has_ground(node: LexborNode) -> bool:
    attributes = node.attributes
    named = attributes.get("bgcolor")
    return (
        "background" in attributes
        or (named is not None and not is_pale(named.strip().lower()))
        or _is_dark(declarations(attributes.get("style") or "").values)
    )


def _is_dark(values: Mapping[str, str]) -> bool:
    """True for a background on which white text is readable: a colour or a picture."""
    declared = [values[name] for name in ("background", "background-color", "background-image") if name in values]
    return any(value not in _NO_GROUND and not is_pale(ground_of(value) or "") for value in declared)


def _with_ancestors(node: LexborNode) -> Iterator[LexborNode]:
    above: LexborNode | None = node
    while above is not None:
        yield above
        above = above.parent
