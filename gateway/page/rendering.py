"""Pages from templates. Every text is escaped, and a browser runs and loads nothing but this folder's static files."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from starlette.responses import Response

from gateway.page.marked import pieces
from gateway.page.static_files import address_of

if TYPE_CHECKING:
    from jinja2 import Environment

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
        "counted": counted,
        "duration": duration,
        "web": web_address,
        "short": shortened,
        "pieces": pieces,
    }
    environment.globals |= {"static": address_of, "link": link}
    return environment


def link(path: str, **query: object) -> str:
    """Return the address of a page of the console; parameters that are None are left out."""
    said = {name: str(value) for name, value in query.items() if value is not None}
    return CONSOLE + path + (f"?{urlencode(said)}" if said else "")


def time(milliseconds: int | None) -> str:
    """Return a time of Unix milliseconds in UTC, to the second."""
    if milliseconds is None:
        return "not yet"
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


def counted(number: int) -> str:
    """Return a number with thin spaces between groups of three digits."""
    return f"{number:,}".replace(",", "\u2009")


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
