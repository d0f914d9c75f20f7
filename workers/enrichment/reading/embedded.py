"""Reads text that a page has as data in its scripts. Runs in a member of the pool.

Such text is used only if the page itself shows less: a teaser before a paywall, or a page that a script fills.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from selectolax.lexbor import LexborHTMLParser

from workers.enrichment.reading.values import leaves

_BODIES: Final = ("articleBody", "text")
"""The properties in schema.org that hold a page's text."""
_DATA: Final = 'script[type="application/json"]'
"""Selects the data for a page's scripts, such as `__NEXT_DATA__` of Next.js."""
_MAX_DATA: Final = 20
_MAX_DATA_CHARS: Final = 1_000_000
_PROSE: Final = re.compile(r"\S+(?:\s+\S+){3}")
"""Matches the beginning of a text of four words or more; a shorter text is a label, an id or an address."""


def article_body(nodes: Sequence[dict[str, Any]]) -> str:
    """Return the longest text of an article in the page's JSON-LD; empty if it has none."""
    texts = (node.get(name) for node in nodes for name in _BODIES)
    return max((text for text in texts if isinstance(text, str)), key=len, default="")


def script_data(tree: LexborHTMLParser) -> str:
    """Return the prose in the page's data for its scripts: each text once, in order, as a paragraph."""
    return "\n\n".join(dict.fromkeys(text for value in _values(tree) for text in _prose(value)))


def _values(tree: LexborHTMLParser) -> Iterator[Any]:
    for script in tree.css(_DATA)[:_MAX_DATA]:
        text = script.text()
        if len(text) <= _MAX_DATA_CHARS:
            try:
                yield json.loads(text)
            except (ValueError, RecursionError):
                continue


def _prose(value: Any) -> Iterator[str]:
    return (leaf for _, leaf in leaves(value) if isinstance(leaf, str) and _PROSE.match(leaf.strip()))
