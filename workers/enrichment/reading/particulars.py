"""Reads a page's date of publication, DOI and canonical address. Runs in a member of the pool.

Publishers state these particulars in meta elements (Highwire, Dublin Core, PRISM, Open Graph), in
`<link rel=canonical>` (RFC 6596), in JSON-LD (schema.org) and in `<time>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from selectolax.lexbor import LexborHTMLParser
from yarl import URL

from schemas.job import Url
from workers.enrichment.evidence import Particulars

MAX_TITLE_CHARS: Final = 200
MAX_DOI_CHARS: Final = 200
_MAX_SCRIPTS: Final = 10
_MAX_SCRIPT_CHARS: Final = 200_000
_MAX_NODES: Final = 200
"""Cap on the number of JSON-LD objects that are read."""

_DATES: Final = (
    "citation_publication_date", "citation_online_date", "citation_date", "article:published_time", "dc.date.issued",
    "dcterms.issued", "dc.date", "prism.publicationdate", "date", "datepublished", "pubdate", "parsely-pub-date",
)  # fmt: skip
_DOIS: Final = ("citation_doi", "prism.doi", "dc.identifier", "dc.identifier.doi", "dcterms.identifier", "doi")
_TITLES: Final = ("title", "headline", "name")

_DATE: Final = re.compile(r"\s*((?:1[5-9]|20)\d\d)(?:[-/.]?(0[1-9]|1[0-2])(?:[-/.]?(0[1-9]|[12]\d|3[01]))?)?(?!\d)")
_DOI: Final = re.compile(r"\b(10\.\d{4,9}/[^\s\"'<>\[\]{}]+)")
"""Matches DOIs in text. The pattern is a little wider than the one that Crossref recommends."""

_URL: Final = TypeAdapter[str](Url)
_UNTITLED: Final = re.compile(
    r"untitled|.*\.(?:docx?|dvi|tex|indd|pdf|qxd)|Microsoft Word.*|PowerPoint .*", re.IGNORECASE
)
"""Matches titles that programs give to documents without a title."""


def of_html(tree: LexborHTMLParser, url: str, linked: Sequence[dict[str, Any]]) -> Particulars:
    """Return a page's particulars. `tree` must still have all its elements. `linked` is the page's `linked_data`."""
    told: dict[str, str] = {}
    for node in tree.css("meta[content]"):
        stated = node.attributes
        name = stated.get("name") or stated.get("property") or stated.get("itemprop") or ""
        told.setdefault(name.lower(), stated.get("content") or "")
    time = tree.css_first("article time[datetime], time[datetime][pubdate], time[datetime][itemprop=datePublished]")
    dates = [told.get(name) for name in _DATES] + [node.get("datePublished") for node in linked]
    dates.append(time.attributes.get("datetime") if time else None)
    dois = [told.get(name) for name in _DOIS] + [node.get(name) for node in linked for name in ("sameAs", "identifier")]
    return Particulars(
        published=next((date for text in dates if (date := iso_date(text)) is not None), None),
        canonical_url=_canonical(tree, told, url),
        doi=next((doi for text in dois if (doi := doi_in(text)) is not None), None),
    )


def of_json(value: Any) -> tuple[str | None, Particulars]:
    """Return the title and the particulars that the fields of a JSON document's outermost object state."""
    if not isinstance(value, dict):
        return None, Particulars()
    title = next((value[name] for name in _TITLES if isinstance(value.get(name), str)), "")
    doi = value.get("doi") or value.get("DOI")
    published = value.get("datePublished") or value.get("published") or value.get("date")
    particulars = Particulars(iso_date(published), doi=doi_in(doi))
    return " ".join(title.split())[:MAX_TITLE_CHARS] or None, particulars


def iso_date(text: object) -> str | None:
    """Return the date at the start of a text in ISO 8601, as exactly as the text has it; None if no date is there."""
    found = _DATE.match(text) if isinstance(text, str) else None
    return "-".join(part for part in found.groups() if part) if found is not None else None


def document_title(text: str) -> str | None:
    """Return the title from a file's properties; None if it is empty, or is the name of a file or program."""
    title = " ".join(text.split())[:MAX_TITLE_CHARS]
    return title if title and not _UNTITLED.fullmatch(title) else None


def doi_in(text: object) -> str | None:
    """Return the first DOI in a text, without the `https://doi.org/` before it and the punctuation after it.

    Return None if there is no DOI, or if the DOI contains a URL, which would become a link in an evidence list.
    """
    found = _DOI.search(text) if isinstance(text, str) else None
    if found is None or "//" in found.group(1):
        return None
    doi = found.group(1).rstrip(".,;:")
    return (doi[:-1] if doi.endswith(")") and "(" not in doi else doi)[:MAX_DOI_CHARS]


def _canonical(tree: LexborHTMLParser, told: dict[str, str], url: str) -> str | None:
    """Return the page's canonical address; None if it is `url` itself or has another origin (RFC 6454).

    With an address of another origin, a page could claim to be a page of any site.
    """
    link = tree.css_first("link[rel~=canonical][href]")
    named = (link.attributes.get("href") if link is not None else None) or told.get("og:url")
    if not named or not url:
        return None
    try:
        read_at = URL(url)
        canonical = read_at.join(URL(named.strip())).with_fragment(None)
        if canonical.origin() != read_at.origin() or canonical == read_at.with_fragment(None):
            return None
        return _URL.validate_python(str(canonical))
    except (ValueError, TypeError, ValidationError):
        return None


def linked_data(tree: LexborHTMLParser) -> list[dict[str, Any]]:
    """Return the objects of the page's JSON-LD."""
    scripts = tree.css('script[type="application/ld+json"]')[:_MAX_SCRIPTS]
    return [node for script in scripts for node in _nodes(script.text()[:_MAX_SCRIPT_CHARS])]


def _nodes(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost objects and the objects in `@graph`.

    Deeper objects describe other things, such as comments.
    """
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return
    outer = value if isinstance(value, list) else [value]
    for node in outer[:_MAX_NODES]:
        if isinstance(node, dict):
            yield node
            graph = node.get("@graph")
            yield from (one for one in (graph if isinstance(graph, list) else [])[:_MAX_NODES] if isinstance(one, dict))
