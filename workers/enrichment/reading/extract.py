"""Extracts the text that a person would see from a page's bytes. Runs in a member of the pool."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree
from selectolax.lexbor import LexborHTMLParser

from schemas.job import MAX_JOB_BYTES
from workers.enrichment.evidence import Extractor, Particulars, Unreadable
from workers.enrichment.reading.charset import decode
from workers.enrichment.reading.data import MAX_DEPTH, from_json, from_json_lines, from_xml, leaves
from workers.enrichment.reading.hidden import without_hidden
from workers.enrichment.reading.office import ZIP, is_office, read_office
from workers.enrichment.reading.particulars import MAX_TITLE_CHARS, linked_data, of_html
from workers.enrichment.reading.pictures import READ_BY_OCR, Recogniser, is_picture

MAX_TEXT_CHARS = MAX_JOB_BYTES
"""Cap on a text's code points. The cap is so high that even the largest document that a job can carry is read whole."""
_THIN_CHARS = 200
"""If a main text is shorter than this and the page has far more text, the whole page's text is used instead."""

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
JSON_TYPES = frozenset({"application/json", "application/ld+json"})
JSON_LINES_TYPES = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"}
)
XML_TYPES = frozenset({"application/xml", "text/xml"})
TEXT_TYPES = frozenset(
    {
        "text/plain", "text/markdown", "text/x-markdown", "text/csv", "text/tab-separated-values",
        "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml",
    }
)  # fmt: skip
"""Types of text that is read as it is, without parsing.

YAML is not parsed either, because people can read its source, and its aliases could expand to gigabytes.
"""
PDF_TYPES = frozenset({"application/pdf", "application/x-pdf", "application/octet-stream", "binary/octet-stream", ""})
"""Media types under which a PDF is read. Any other type contradicts the content, and the page is refused."""

_PDF: Final = b"%PDF-"
_MAGIC = {
    _PDF: "a PDF", ZIP: "a ZIP archive", b"\x1f\x8b": "gzip data", b"\x89PNG": "an image",
    b"GIF8": "an image", b"\xff\xd8\xff": "an image", b"\x7fELF": "a program", b"MZ": "a program",
    b"\x28\xb5\x2f\xfd": "compressed data", b"BZh": "compressed data", b"\xfd7zXZ": "compressed data",
    b"\xd0\xcf\x11\xe0": "an Office file with a password, or older than 2007",
}  # fmt: skip
_VOID_TAGS = "area base br col embed hr img input link meta param source track wbr"
_VOID = frozenset(_VOID_TAGS.split())
_IMPLIED_TAGS = "body caption colgroup dd dt head html li optgroup option p rp rt tbody td tfoot th thead tr"
_END_IS_IMPLIED = frozenset(_IMPLIED_TAGS.split())
"""Elements that may lack an end tag. They are not counted as nested, since a page of a million `<p>` is not deep."""
_RAW = frozenset(("script", "style", "textarea", "title", "xmp", "noframes"))
_TAG = re.compile(r"<!--|<(/?)([a-zA-Z][^\s/>]*)([^<>]*)")
_COMMENT_END = re.compile("--!?>")
_MANY_TAGS: Final = 10_000
"""If a page has more tags, nesting is counted before parsing, since the time of parsing grows with tags times depth."""
_TOO_DEEP: Final = ">".join(["*"] * (MAX_DEPTH + 1))
"""Selects elements that are nested in `MAX_DEPTH` others."""
_START_CHARS: Final = 2000
_HTML_ROOT: Final = re.compile(r"(?:<[?!][^>]*>\s*)*<html[\s>]", re.IGNORECASE)
"""Matches the beginning of XHTML, which some servers send with the type of XML."""
_XML_STARTS: Final = ("<?xml", "<rss", "<feed")
_BLANKS: Final = "".join(sign for sign in map(chr, range(0x3001)) if sign.isspace() and sign not in " \n")
"""The white space of Unicode except the space and the line feed."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """A page's title, main text and particulars, and the page's other text, such as menus and comments."""

    title: str | None
    text: str
    particulars: Particulars = field(default_factory=Particulars)
    rest: str = ""


def extract(
    body: bytes,
    media_type: str,
    charset: str | None,
    url: str = "",
    extractor: Extractor = "resiliparse",
    recogniser: Recogniser | None = None,
) -> Extracted:
    """Extract the text that a person would see. `url` is the page's address; `extractor` finds the main text.

    Pictures of text are read only if there is a `recogniser`.
    Raises Unreadable if the page has no text, or is of an unsupported type.
    """
    if _is_pdf(body, media_type):
        extracted = _of_pdf(body, recogniser)
    elif is_picture(body, media_type):
        if recogniser is None:
            raise Unreadable("it is an image, and the operator has not turned OCR on")
        extracted = Extracted(None, recogniser.of_image(body), Particulars(read_by=READ_BY_OCR))
    elif is_office(body, media_type):
        title, text, particulars = read_office(body, MAX_TEXT_CHARS)
        extracted = Extracted(title, text, particulars)
    else:
        extracted = _of_text(body, media_type, charset, url, extractor)
    text = _tidy(extracted.text)[:MAX_TEXT_CHARS]
    rest = _tidy(extracted.rest)[: MAX_TEXT_CHARS - len(text)]
    if not text and not rest:
        is_scan = recogniser is None and _is_pdf(body, media_type)
        why = ", and the operator has not turned on OCR, which reads scanned pages" if is_scan else ""
        raise Unreadable(f"it holds no visible text{why}")
    return replace(extracted, text=text, rest=rest)


def _tidy(text: str) -> str:
    """Replace each run of blanks by one space, and each run of empty lines by one empty line."""
    for blank in _BLANKS:
        text = text.replace(blank, " ")
    # `str.replace` takes a tenth of the time of regular expressions for text that needs few changes.
    for many, few in (("  ", " "), ("\n \n", "\n\n"), ("\n\n\n", "\n\n")):
        while many in text:
            text = text.replace(many, few)
    return text.strip()


def _is_pdf(body: bytes, media_type: str) -> bool:
    return media_type in PDF_TYPES and (body.startswith(_PDF) or media_type.endswith("pdf"))


def _of_pdf(body: bytes, recogniser: Recogniser | None) -> Extracted:
    from workers.enrichment.reading.pdf import read_pdf  # this import takes 0.1 s, and HTML does not need it

    title, text, particulars = read_pdf(body, MAX_TEXT_CHARS, recogniser)
    return Extracted(title, text, particulars)


def _of_text(body: bytes, media_type: str, charset: str | None, url: str, extractor: Extractor) -> Extracted:
    for magic, what in _MAGIC.items():
        if body.startswith(magic):
            why = "not what its type says" if magic == _PDF else "which is not read"
            raise Unreadable(f"it is {what}, {why}")
    text = decode(body, charset)
    if text.count("\0") > len(text) // 100:
        raise Unreadable("it is binary data")
    is_xml = media_type in XML_TYPES or (media_type.endswith("+xml") and not media_type.startswith("image/"))
    start = text[:_START_CHARS].lstrip("\ufeff \t\r\n")
    if media_type in HTML_TYPES or ((is_xml or not media_type) and _HTML_ROOT.match(start)):
        return from_html(text, url, extractor)
    if is_xml or (not media_type and start.startswith(_XML_STARTS)):
        return Extracted(*from_xml(text, MAX_TEXT_CHARS, _visible))
    if not media_type and start.startswith("<"):
        return from_html(text, url, extractor)
    if media_type in JSON_TYPES or media_type.endswith("+json"):
        return Extracted(*from_json(text, MAX_TEXT_CHARS))
    if media_type in JSON_LINES_TYPES:
        return Extracted(None, from_json_lines(text, MAX_TEXT_CHARS))
    if media_type in TEXT_TYPES or not media_type:
        return Extracted(None, text)
    raise Unreadable(f"pages of type {media_type[:100]} are not read")


def from_html(html: str, url: str = "", extractor: Extractor = "resiliparse") -> Extracted:
    """Extract title, main text and the rest of the page, without hidden elements.

    Raises Unreadable if elements are nested too deep.
    """
    tree = _tree(html)
    title = _title(tree)
    linked = linked_data(tree)
    particulars = of_html(tree, url, linked)
    seen = without_hidden(tree, html).html or ""
    visible = HTMLTree.parse(seen)
    whole = _tidy(extract_plain_text(visible, main_content=False, preserve_formatting=True, alt_texts=False))
    main = _tidy(extract_plain_text(visible, main_content=True, preserve_formatting=True, alt_texts=False))
    if extractor == "trafilatura":
        main = _better(main, seen, whole)
    untold = _article_body(linked) or (_script_data(LexborHTMLParser(html)) if len(whole) < _THIN_CHARS else "")
    if len(whole) < len(untold) // 2:
        return Extracted(title, _visible(untold), particulars, whole)
    if len(main) < _THIN_CHARS and len(main) < len(whole) // 4:
        return Extracted(title, whole, particulars)
    return Extracted(title, main, particulars, _without_lines(whole, main))


def _better(main: str, html: str, whole: str) -> str:
    """Return trafilatura's main text.

    If it is less than half as long as `main`, resiliparse's main text, return `main`.
    """
    from workers.enrichment.reading.by_trafilatura import main_lines  # the module needs an optional package

    found = main_lines(html, whole)
    return found if 2 * len(found) >= len(main) else main


def _tree(html: str) -> LexborHTMLParser:
    too_deep = Unreadable(f"its elements nest more than {MAX_DEPTH} deep")
    if html.count("<") > _MANY_TAGS and depth_exceeds(html, MAX_DEPTH):
        raise too_deep
    tree = LexborHTMLParser(html)
    if tree.css_first(_TOO_DEEP) is not None:
        raise too_deep
    return tree


def _visible(html: str) -> str:
    """Return the text of a part of a page, or of a text without markup. Raises Unreadable."""
    if "<" not in html and "&" not in html:
        return html
    visible = HTMLTree.parse(without_hidden(_tree(html), html).html or "")
    return str(extract_plain_text(visible, main_content=False, preserve_formatting=True, alt_texts=False))


def _without_lines(whole: str, main: str) -> str:
    """Return the lines of the whole page that are not in the main text, in the page's order."""
    known = Counter(map(str.strip, main.split("\n")))
    rest = []
    for line in whole.split("\n"):
        plain = line.strip()
        if known[plain] > 0:
            known[plain] -= 1
        else:
            rest.append(line)
    return "\n".join(rest)


def _title(tree: LexborHTMLParser) -> str | None:
    for selector in ("title", "h1"):
        node = tree.css_first(selector)
        text = " ".join(node.text().split()) if node is not None else ""
        if text:
            return text[:MAX_TITLE_CHARS]
    return None


def depth_exceeds(html: str, limit: int) -> bool:
    """True if more than `limit` elements are open at once.

    In a broken page, more elements may be counted than are open.
    """
    opened: Counter[str] = Counter()
    depth = position = 0
    while (tag := _TAG.search(html, position)) is not None:
        position = tag.end()
        if tag.group(2) is None:
            end = _COMMENT_END.search(html, position - 2)  # `<!-->` is a whole comment
            position = end.end() if end is not None else len(html)
            continue
        name = tag.group(2).lower()
        if name in _VOID or name in _END_IS_IMPLIED:
            continue
        if tag.group(1):
            if opened[name]:
                opened[name] -= 1
                depth -= 1
        elif name in _RAW:
            position = _after(html, f"</{name}", position)
        elif not (tag.group(3).endswith("/") and (opened["svg"] or opened["math"] or name in ("svg", "math"))):
            opened[name] += 1
            depth += 1
        if depth > limit:
            return True
    return False


def _after(html: str, end: str, position: int) -> int:
    found = html.find(end, position)
    return len(html) if found < 0 else found + len(end)


# -- text that a page has as data in its scripts ---------------------------------------------------------------------

# Such text is used only if the page itself shows less: a teaser before a paywall, or a page that a script fills.

_ARTICLE_BODIES: Final = ("articleBody", "text")
"""The properties in schema.org that hold a page's text."""
_SCRIPT_DATA: Final = 'script[type="application/json"]'
"""Selects the data for a page's scripts, such as `__NEXT_DATA__` of Next.js."""
_MAX_SCRIPT_DATA: Final = 20
_MAX_SCRIPT_CHARS: Final = 1_000_000
_PROSE: Final = re.compile(r"\S+(?:\s+\S+){3}")
"""Matches the beginning of a text of four words or more; a shorter text is a label, an id or an address."""


def _article_body(nodes: Sequence[dict[str, Any]]) -> str:
    """Return the longest text of an article in the page's JSON-LD; empty if it has none."""
    texts = (node.get(name) for node in nodes for name in _ARTICLE_BODIES)
    return max((text for text in texts if isinstance(text, str)), key=len, default="")


def _script_data(tree: LexborHTMLParser) -> str:
    """Return the prose in the page's data for its scripts: each text once, in order, as a paragraph."""
    return "\n\n".join(dict.fromkeys(text for value in _script_values(tree) for text in _prose(value)))


def _script_values(tree: LexborHTMLParser) -> Iterator[Any]:
    for script in tree.css(_SCRIPT_DATA)[:_MAX_SCRIPT_DATA]:
        text = script.text()
        if len(text) <= _MAX_SCRIPT_CHARS:
            try:
                yield json.loads(text)
            except (ValueError, RecursionError):
                continue


def _prose(value: Any) -> Iterator[str]:
    return (leaf for _, leaf in leaves(value) if isinstance(leaf, str) and _PROSE.match(leaf.strip()))


def readable_text(content: bytes, media_type: str, *, charset: str | None = None, url: str = "") -> str:
    """Return a page's main text as a person would see it, or the rest of its text if there is no main text.

    `media_type` is the type in `Content-Type`, without parameters; `charset` is the parameter `charset` of that header.
    The call parses in this process: workers call it in a confined process. Raises Unreadable if there is no text, or
    the type is not supported.
    """
    extracted = extract(content, media_type.strip().lower(), charset, url)
    return extracted.text or extracted.rest
