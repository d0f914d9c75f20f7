"""Reads JSON, XML, and feeds in RSS and Atom as text. Runs in a member of the pool.

Entities that XML declares are refused, since a few bytes of these can expand to gigabytes (`defusedxml`).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from email.utils import parsedate_to_datetime
from html.entities import html5
from itertools import islice
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.ElementTree import DefusedXMLParser

from workers.enrichment.evidence import Particulars, Unreadable
from workers.enrichment.reading.particulars import MAX_TITLE_CHARS, iso_date, of_json

_BETWEEN: Final = "\n\n"
MAX_PATH_CHARS: Final = 200
"""Cap on the characters of the path before a value. A longer path loses its beginning."""


def from_json(text: str, max_chars: int) -> tuple[str | None, str, Particulars]:
    """Return title, text and particulars of JSON. The text ends at the line that reaches `max_chars`.

    Raises Unreadable.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("its type is JSON, but its content is not") from None
    title, particulars = of_json(value)
    return title, lines(leaves(value), max_chars), particulars


def from_json_lines(text: str, max_chars: int) -> str:
    """Return the text of newline-delimited JSON, with a paragraph for each line. Raises Unreadable if no line is JSON.

    Lines that are not JSON are left out, because a log may end in the middle of a line.
    """
    paragraphs = []
    for line in text.split("\n"):
        try:
            paragraphs.append(lines(leaves(json.loads(line)), max_chars))
        except (ValueError, RecursionError):
            continue
        max_chars -= len(paragraphs[-1]) + len(_BETWEEN)
        if max_chars <= 0:
            break
    if not paragraphs:
        raise Unreadable("its type is lines of JSON, but no line is JSON")
    return _BETWEEN.join(paragraphs)


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value that is neither an object nor an array, and before it the path of names that lead to it."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend((below(path, key), member) for key, member in reversed(item.items()))
        elif isinstance(item, list):
            waiting.extend((path, member) for member in reversed(item))
        else:
            yield path, item


def below(path: str, name: str) -> str:
    """Return the path of a member. Only its last MAX_PATH_CHARS are kept, so that deep values stay small."""
    return f"{path} {name}".strip()[-MAX_PATH_CHARS:]


def lines(values: Iterable[tuple[str, Any]], max_chars: int) -> str:
    """Return a line for each value, with the value's path first. The line that reaches `max_chars` is the last one."""
    written: list[str] = []
    size = 0
    for path, value in values:
        written.append(f"{path}: {value}" if path else str(value))
        size += len(written[-1])
        if size >= max_chars:
            break
    return "\n".join(written)


MAX_DEPTH: Final = 1000
"""Cap on the depth of nested elements, in XML and in HTML."""
MAX_ITEMS: Final = 500
"""Cap on the entries that are read from a feed."""

_FEEDS: Final = frozenset({"rss", "RDF", "feed"})
_ITEMS: Final = frozenset({"item", "entry"})
_TEXTS: Final = frozenset({"encoded", "content", "description", "summary"})
_DATES: Final = frozenset({"pubDate", "published", "updated", "date"})
_DECLARED: Final = frozenset({"amp", "lt", "gt", "quot", "apos"})
"""The entities that XML itself declares."""
_AMPERSAND: Final = re.compile(r"&(?!#\d{1,7};|#x[0-9a-fA-F]{1,6};)(?:([A-Za-z][A-Za-z0-9]{1,31});)?")


class _Builder(TreeBuilder):
    """Builds a tree of elements that nest at most `MAX_DEPTH` deep."""

    depth = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable(f"its elements nest more than {MAX_DEPTH} deep")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def from_xml(text: str, max_chars: int, text_of_html: Callable[[str], str]) -> tuple[str | None, str]:
    """Return the title and the text of XML.

    The text has the entries of a feed, or else a line for each element with text.
    `text_of_html` turns the HTML in a feed's entry into text. Raises Unreadable.
    """
    root = _parsed(text)
    if _name(root) in _FEEDS:
        return _of_feed(root, text_of_html)
    return None, lines(_leaves(root), max_chars)


def _parsed(text: str) -> Element:
    """Parse XML.

    If the XML is broken, replace HTML's entities and bare ampersands, which many feeds have, and parse it again.
    """
    try:
        return _strictly(text)
    except (ParseError, ValueError):  # defusedxml's errors are ValueErrors
        pass
    try:
        return _strictly(_AMPERSAND.sub(_repaired, text))
    except (ParseError, ValueError):
        raise Unreadable("its type is XML, but its content cannot be read as XML") from None


def _strictly(text: str) -> Element:
    parser = DefusedXMLParser(target=_Builder())
    parser.feed(text)
    root: Element = parser.close()
    return root


def _repaired(found: re.Match[str]) -> str:
    name = found.group(1)
    if name in _DECLARED:
        return found.group()
    return html5.get(f"{name};", f"&amp;{found.group()[1:]}")


def _name(element: Element) -> str:
    """Return the element's name without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _leaves(root: Element) -> Iterator[tuple[str, str]]:
    """Yield path and text of each attribute, and of each element that has text of its own or no child elements."""
    waiting = [("", root)]
    while waiting:
        path, element = waiting.pop()
        for name, value in element.attrib.items():
            yield below(path, name.rpartition("}")[2]), value
        if not len(element) or _has_own_text(element):
            text = _line(element)
            if text:
                yield path, text
        else:
            waiting.extend((below(path, _name(inner)), inner) for inner in reversed(element))


def _has_own_text(element: Element) -> bool:
    return any(text is not None and not text.isspace() for text in (element.text, *(one.tail for one in element)))


def _line(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


# -- feeds -----------------------------------------------------------------------------------------------------------


def _of_feed(root: Element, text_of_html: Callable[[str], str]) -> tuple[str | None, str]:
    """Return the feed's title, and for each entry its title, date and text."""
    titles = (_line(one) for channel in (root, *root) for one in channel if _name(one) == "title")
    items = (element for element in root.iter() if _name(element) in _ITEMS)
    entries = [_entry(item, text_of_html) for item in islice(items, MAX_ITEMS)]
    title = html.unescape(next(titles, ""))[:MAX_TITLE_CHARS]
    return title or None, "\n\n".join(entry for entry in entries if entry)


def _entry(item: Element, text_of_html: Callable[[str], str]) -> str:
    title, date, texts = "", None, [""]
    for field in item:
        name = _name(field)
        if name == "title":
            title = title or html.unescape(_line(field))
        elif name in _DATES:
            date = date or _date("".join(field.itertext()))
        elif name in _TEXTS:
            texts.append("".join(field.itertext()))
    head = f"{title} ({date})" if title and date else title or date or ""
    return f"{head}\n{text_of_html(max(texts, key=len)).strip()}".strip()


def _date(text: str) -> str | None:
    """Return the day of a date that is written as in RFC 5322 (RSS) or ISO 8601 (Atom); None for any other text."""
    try:
        return parsedate_to_datetime(text).date().isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        return iso_date(text)
