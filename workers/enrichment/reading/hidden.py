"""Removes elements that a page's reader would not see.

Hidden text is meant for machines, and often tries to mislead models. Attributes, inline styles and conventional class
names such as "sr-only" show which elements are hidden. Style sheets are not read, because a page can hide text in more
ways than a reader of style sheets knows. On public sets of pages, such a reader removed more visible text than hidden
text. The answer's safety rests on the marks around the sources, on neutralised tokens and on the removal of unknown
links. All three apply to visible and hidden text alike.
"""

from __future__ import annotations

import re
from typing import Final

from selectolax.lexbor import LexborHTMLParser

from workers.enrichment.reading.inline_style import color_of, hides, is_pale

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
