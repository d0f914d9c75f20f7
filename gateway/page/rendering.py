"""Pages from templates, with their style sheet, scripts and icon.

Every text is escaped, and a browser runs and loads nothing but this folder's static files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from schemas.result import Citation, Result, Support

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = "/console/static"
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class StaticFile(NamedTuple):
    """One file, and its type."""

    content: bytes
    media_type: str
    digest: str


@cache
def _file(name: str) -> StaticFile:
    content = files("gateway.page").joinpath("static", name).read_bytes()
    return StaticFile(content, _TYPES[name.rpartition(".")[2]], hashlib.sha256(content).hexdigest()[:16])


NAMES = ("console.css", "console.js", "docs.css", "htmx.min.js", "icon.svg")


def address_of(name: str) -> str:
    """Return a file's address."""
    return f"{_FOLDER}/{_file(name).digest}/{name}"


def static_routes() -> list[Route]:
    """Return the routes of the files, which need no credential."""

    async def serve(request: Request) -> Response:
        file = _file(request.url.path.rpartition("/")[2])
        headers = {
            "cache-control": "public, max-age=31536000, immutable",
            "cross-origin-resource-policy": "same-origin",
        }
        return Response(file.content, headers=headers, media_type=file.media_type)

    return [Route(address_of(name), serve) for name in NAMES]


CONSOLE: Final = "/console"
CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "content-security-policy": CONTENT_POLICY,
    "referrer-policy": "same-origin",  # with `no-referrer`, browsers would send the Origin `null`, which forms refuse
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_WEB = ("http", "https")
_LONGEST_ID = 28
_UTC = " UTC"
_WEAKEST_FIRST = tuple(reversed(Support))


def page(name: str, status: int = 200, **values: Any) -> Response:
    """Return the response with a template's page. `values` has the values of the template's variables."""
    text = _environment().get_template(f"{name}.html").render(values)
    return Response(text, status, HEADERS, media_type="text/html")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # most gateways show no page

    environment = Environment(
        loader=PackageLoader("gateway.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "time": time,
        "utc": utc,
        "counted": counted,
        "duration": duration,
        "web": web_address,
        "short": shortened,
        "pieces": pieces,
        "json": partial(json.dumps, indent=2, ensure_ascii=False),
    }
    environment.globals |= {"static": address_of, "link": link, "link_of": link_of}
    return environment


def link(path: str, **query: object) -> str:
    """Return the address of a page of the console; parameters that are None are left out."""
    said = {name: str(value) for name, value in query.items() if value is not None}
    return CONSOLE + path + (f"?{urlencode(said)}" if said else "")


def link_of(object_id: str, **query: object) -> str:
    """Return the address of the page of a job or a batch, by the id that its callbacks have."""
    is_batch = object_id.startswith("batch_") and "." not in object_id
    return link("/batch" if is_batch else "/job", id=object_id, **query)


def time(milliseconds: int | None) -> str:
    """Return an element with a time. console.js shows the time in the browser's time zone, and UTC on hover."""
    from markupsafe import Markup

    text = utc(milliseconds)
    if not text.endswith(_UTC):
        return text
    machine = text.removesuffix(_UTC).replace(" ", "T") + "Z"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(machine, text, text)


def utc(milliseconds: int | None) -> str:
    """Return a time of Unix milliseconds in UTC, to the second."""
    if milliseconds is None:
        return "not yet"
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}{_UTC}"
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


def counted(number: int) -> str:
    """Return a number with narrow no-break spaces between groups of three digits."""
    return f"{number:,}".replace(",", "\u202f")


def duration(milliseconds: float) -> str:
    """Return a duration as text, in milliseconds, seconds, minutes or hours: longer durations in larger units."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def web_address(text: str | None) -> str | None:
    """Return an address that a link may lead to: http or https with a host; None for any other text."""
    # Browsers drop some control characters, and would then follow another URL than the checked one.
    if text is None or any(character <= " " for character in text):
        return None
    try:
        parts = urlsplit(text)
        return text if parts.scheme in _WEB and parts.hostname else None
    except ValueError:
        return None


def shortened(text: str) -> str:
    """Return a long id with an ellipsis in its middle."""
    return text if len(text) <= _LONGEST_ID else f"{text[:16]}…{text[-8:]}"


# -- an answer's text with its sources ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """A citation's source, shown after the cited place."""

    number: int | None
    """The source's place in the list of sources, from 1; None if the source is not in the list."""
    source: str
    support: Support


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer's text. Pieces do not overlap."""

    text: str
    support: Support | None
    """The weakest support of the citations that cover the piece; None for a piece without a citation."""
    references: Sequence[Reference]
    """The citations whose cited place ends where the piece ends."""


def pieces(result: Result) -> Iterator[Piece]:
    """Yield the pieces of the answer's text, so that a page can mark the text that rests on sources.

    The pieces together are the whole text, even if citations name places outside the text.
    """
    text = result.text or ""
    numbers = {source: number for number, source in reversed(list(enumerate(result.sources, 1)))}
    begins, ends = _edges(result.citations, len(text))
    covering: Counter[Support] = Counter()
    place = 0
    for edge in sorted({0, len(text), *begins, *ends}):
        if edge > place:
            support = next((each for each in _WEAKEST_FIRST if covering[each]), None)
            ending = [Reference(numbers.get(each.source), each.source, each.support) for each in ends.get(edge, ())]
            yield Piece(text[place:edge], support, ending)
        for each in ends.get(edge, ()):
            covering[each.support] -= 1
        for each in begins.get(edge, ()):
            covering[each.support] += 1
        place = edge


def _edges(citations: Sequence[Citation], length: int) -> tuple[dict[int, list[Citation]], dict[int, list[Citation]]]:
    """Return two mappings to the citations: from the starts, and from the ends, of their cited places.

    Citations that cover no text are left out.
    """
    begins: dict[int, list[Citation]] = {}
    ends: dict[int, list[Citation]] = {}
    for each in citations:
        end = min(each.end, length)
        if each.start < end:
            begins.setdefault(each.start, []).append(each)
            ends.setdefault(end, []).append(each)
    return begins, ends
