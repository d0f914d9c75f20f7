"""Takes out of a page what its reader would not see, since it is there for machines, and often against them.

Seen are inline styles, the page's own style sheets, attributes, and class names that mean "hidden" by convention. Style
sheets in other files are not fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

_NEVER_SEEN = (
    "script, style, noscript, template, iframe, object, embed, svg, canvas, head > *, "
    "[hidden], [aria-hidden='true'], input[type='hidden'], dialog:not([open])"
)
_CLASS_NAMES = (
    "hidden hide is-hidden d-none display-none invisible sr-only visually-hidden visuallyhidden screen-reader-text "
    "screen-reader-only screenreader-only element-invisible offscreen off-screen u-hidden"
)
_CLASSES = frozenset(_CLASS_NAMES.split())
_ROOTS = frozenset(("html", "body", "main"))
"""Pages hide these until a script has run; a person sees them."""
_MAX_RULES = 2000
_STYLE_CHARS = 200_000
_BRACE = re.compile(r"([^{}]*)([{}])")
_EVERYWHERE = re.compile(r"@media\s+(?:only\s+)?(?:screen|all)\s*$|@layer\b|@supports\s*\(", re.IGNORECASE)
"""Blocks whose rules hold for whoever looks at the page; others hold on paper, on small screens or in animations."""
_COMMENT = re.compile(r"/\*.*?(?:\*/|$)", re.DOTALL)
_LENGTH = re.compile(r"(-?\d*\.?\d+)\s*(px|em|rem|pt|%|vw|vh|)", re.IGNORECASE)
_WHITE = frozenset(("white", "#fff", "#ffff", "#ffffff", "#ffffffff", "rgb(255,255,255)", "rgba(255,255,255,1)"))
_CLEAR = re.compile(r"transparent|#[0-9a-f]{3}0|#[0-9a-f]{6}00|(?:rgb|hsl)a?\([^)]*[,/]0(?:\.0+)?%?\)")
_FAR = 500.0
"""CSS pixels beyond which a negative offset is outside of every page."""


def remove_hidden(tree: LexborHTMLParser) -> None:
    """Remove, in place, all elements that are not seen.

    Every list goes from its end, so that what lies inside a removed element was gone before it.
    """
    rules = list(_hiding_rules(tree))
    bare = not tree.css("link[rel~='stylesheet']")
    for node in reversed(tree.css(_NEVER_SEEN)):
        _remove(node)
    for selector in rules:
        for node in reversed(_matches(tree, selector)):
            _remove(node)
    for node in reversed(tree.css("[class]")):
        if not _CLASSES.isdisjoint((node.attributes.get("class") or "").lower().split()):
            _remove(node)
    for node in reversed(tree.css("[style], font[color]")):
        declarations = _declarations(node.attributes.get("style") or "")
        if hides(declarations) or (bare and _is_white_on_white(node, declarations)):
            _remove(node)


def _remove(node: LexborNode) -> None:
    if node.tag not in _ROOTS and node.parent is not None:
        node.decompose()


def _matches(tree: LexborHTMLParser, selector: str) -> list[LexborNode]:
    try:
        return tree.css(selector)
    except (SelectolaxError, ValueError):
        return []  # a selector that the parser does not know


def _hiding_rules(tree: LexborHTMLParser) -> Iterator[str]:
    """Selectors of the page's own style sheets whose elements are hidden. States such as `:hover` do not count."""
    sheet = "\n".join(node.text() for node in tree.css("style"))[:_STYLE_CHARS]
    for selector, style in islice(_rules(_COMMENT.sub("", sheet)), _MAX_RULES):
        if ":" not in selector and hides(_declarations(style)):
            yield selector


def _rules(sheet: str) -> Iterator[tuple[str, str]]:
    """Selector and declarations of every rule that holds for whoever looks at the page."""
    around: list[str] = []
    for part in _BRACE.finditer(sheet):
        text, brace = part.groups()
        if brace == "{":
            around.append(text.rpartition(";")[2].strip())
        elif around:
            selector = around.pop()
            if selector and not selector.startswith("@") and all(_EVERYWHERE.match(block) for block in around):
                yield selector, text


def _declarations(style: str) -> dict[str, str]:
    """Property to value, lower case, without `!important`."""
    pairs = (part.split(":", 1) for part in style[:5000].lower().split(";") if ":" in part)
    return {name.strip(): value.replace("!important", "").strip() for name, value in pairs}


def hides(declarations: dict[str, str]) -> bool:
    """Whether an element with these declarations is not seen."""
    get = declarations.get
    color = get("color", "").replace(" ", "")
    background = get("background-color", get("background", "")).replace(" ", "")
    return (
        get("display") == "none"
        or get("visibility") in ("hidden", "collapse")
        or get("content-visibility") == "hidden"
        or _is_tiny(get("opacity"), 0.05)
        or _is_tiny(get("font-size"), 2.0)
        or (bool(color) and (color == background or _CLEAR.fullmatch(color) is not None))
        or _is_outside(declarations)
        or _is_collapsed(declarations)
    )


def _number(value: str | None) -> float | None:
    match = _LENGTH.match(value.strip()) if value else None
    if match is None:
        return None
    scale = {"em": 16.0, "rem": 16.0, "vw": 10.0, "vh": 10.0, "%": 10.0}.get(match.group(2).lower(), 1.0)
    return float(match.group(1)) * scale


def _is_tiny(value: str | None, limit: float) -> bool:
    number = _number(value)
    return number is not None and abs(number) < limit


def _is_outside(declarations: dict[str, str]) -> bool:
    positioned = declarations.get("position") in ("absolute", "fixed", "relative")
    offsets = ["text-indent", "margin-left", "margin-top", *(["left", "top", "right", "bottom"] if positioned else [])]
    if any((_number(declarations.get(name)) or 0.0) < -_FAR for name in offsets):
        return True
    if re.search(r"translate[xy3d]*\([^)]*-\d{4,}|scale[xy]?\(0(?:\.0+)?[,)]", declarations.get("transform", "")):
        return True
    clip = (declarations.get("clip", "") + declarations.get("clip-path", "")).replace(" ", "")
    return bool(re.search(r"rect\((?:0|1)(?:px)?[, ]?(?:0|1)(?:px)?|inset\((?:50|100)%|circle\(0", clip))


def _is_collapsed(declarations: dict[str, str]) -> bool:
    cut = declarations.get("overflow", declarations.get("overflow-y", "")) in ("hidden", "clip")
    sizes = [_number(declarations.get(name)) for name in ("height", "width", "max-height", "max-width")]
    return cut and any(size is not None and 0 <= size <= 1 for size in sizes)


def _is_white_on_white(node: LexborNode, declarations: dict[str, str]) -> bool:
    """White text on a page that sets no other ground for it; only sure where no style sheet is outside of the page."""
    color = (declarations.get("color") or node.attributes.get("color") or "").replace(" ", "").lower()
    if color not in _WHITE or "background" in "".join(declarations):
        return False
    above = node.parent
    while above is not None:
        style = (above.attributes.get("style") or "").lower() if above.attributes else ""
        if "background" in style or (
            above.attributes and ("bgcolor" in above.attributes or "class" in above.attributes)
        ):
            return False
        above = above.parent
    return True
