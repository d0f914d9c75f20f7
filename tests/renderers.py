"""Finds the links and loads that an answer's reader would see, with a browser's HTML parser and a Markdown renderer."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from selectolax.lexbor import LexborHTMLParser

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
LOAD_NOTHING = {"align", "alt", "class", "colspan", "dir", "lang", "rowspan", "scope", "start", "title"}
URLS = re.compile(r"(?:(?:https?|ftp)://|(?<!\w)www\.(?=\w))[^ \t\n\v\f\r<]+", re.IGNORECASE)
"""Matches URLs in plain text: those that GFM turns into links, and a few others. Only ASCII spaces end a URL."""


def rendered(text: str) -> list[tuple[str, str]]:
    """Each load or link in a text, as `element attribute` and its value."""
    return [*fetched(text), *fetched(MARKDOWN.render(text))]


def fetched(html: str) -> Iterator[tuple[str, str]]:
    """Each load or link in HTML, as `element attribute` and its value."""
    for node in LexborHTMLParser(html).css("*"):
        if node.tag in ("script", "style") and node.text(deep=True).strip():
            yield node.tag, node.text()
        for name, value in node.attributes.items():
            if value and name not in LOAD_NOTHING:
                yield f"{node.tag} {name}", value


def urls_in_text(text: str) -> list[str]:
    """The URLs that a program would find in plain text, without trailing punctuation."""
    return [url.rstrip(".,;:!?*_~\"'`)]}>|").rstrip("/") for url in URLS.findall(text)]
