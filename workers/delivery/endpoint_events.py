"""Events for a tenant's webhook endpoints, from the topic `callback_events`.

The gateway writes these events. A record's value is the event's body, which is sent unchanged. The record's headers
state the endpoint, the versions of the endpoint's secret that sign the event, the endpoint's own HTTP headers, and its
rate limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from schemas import topics as names
from workers.stage.record import Headers

MOST_HEADERS = 16
"""Limit on an endpoint's own HTTP headers."""
MOST_VERSIONS = 8
"""Limit on the versions of an endpoint's secret that sign one event."""

_ENDPOINT = re.compile(r"we_[0-9a-f]{8,56}")
_VERSIONS = re.compile(rf"[1-9][0-9]{{0,8}}(?:,[1-9][0-9]{{0,8}}){{0,{MOST_VERSIONS - 1}}}")
MOST_A_SECOND = 10_000
"""Limit on a rate limit: a higher one would space nothing."""
_RATE = re.compile(rb"[1-9][0-9]{0,4}")
_HTTP_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}): ?([\x21-\x7e](?:[\x20-\x7e]{0,2046}[\x21-\x7e])?)")
"""A field name, a colon and a value of visible ASCII (RFC 9110, section 5.5)."""
RESERVED_HEADERS = frozenset(
    (
        *("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "te"),
        *("trailer", "upgrade", "expect", "keep-alive", "proxy-authorization", "proxy-connection", "user-agent"),
        *("accept", "accept-encoding", "cookie", names.TRACEPARENT, "tracestate"),
    )
)
"""HTTP headers that an endpoint cannot set, because they frame the request or belong to the sender."""
RESERVED_PREFIX = "webhook-"


class UnusableRecord(Exception):  # noqa: N818 - named after the record
    """A record that delivery cannot use, mostly for a missing or malformed header. The text names the problem."""


class EndpointEvent(NamedTuple):
    """The endpoint of an event."""

    endpoint_id: str
    versions: tuple[int, ...]
    """Versions of the endpoint's secret that sign, newest first."""
    http_headers: Mapping[str, str]
    """The endpoint's own HTTP headers."""
    rate_limit: int | None = None
    """The most callbacks a second; None without a limit."""


def read_endpoint_event(headers: Headers) -> EndpointEvent:
    """Return the endpoint that is named in an event's headers. Raises UnusableRecord."""
    said = dict(headers)
    endpoint, versions = (said.get(name) or b"" for name in (names.WEBHOOK_ENDPOINT, names.WEBHOOK_ENDPOINT_VERSIONS))
    if not _ENDPOINT.fullmatch(endpoint.decode("latin-1")):
        raise UnusableRecord(f"the header {names.WEBHOOK_ENDPOINT} is not `we_` and hexadecimal digits")
    if not _VERSIONS.fullmatch(versions.decode("latin-1")):
        raise UnusableRecord(f"the header {names.WEBHOOK_ENDPOINT_VERSIONS} is not a list of versions, such as `2,1`")
    own = [value for name, value in headers if name == names.WEBHOOK_HTTP_HEADER]
    rate = said.get(names.WEBHOOK_RATE_LIMIT)
    if rate is not None and not _RATE.fullmatch(rate):
        raise UnusableRecord(f"the header {names.WEBHOOK_RATE_LIMIT} is not a number of callbacks a second")
    limit = None if rate is None else int(rate)
    return EndpointEvent(endpoint.decode(), tuple(map(int, versions.split(b","))), _http_headers(own), limit)


def is_reserved(name: str) -> bool:
    """Return whether an endpoint cannot set this HTTP header."""
    return name.lower() in RESERVED_HEADERS or name.lower().startswith(RESERVED_PREFIX)


def _http_headers(own: list[bytes | None]) -> Mapping[str, str]:
    """Return an endpoint's HTTP headers. Raises UnusableRecord."""
    if len(own) > MOST_HEADERS:
        raise UnusableRecord(f"the record has more than {MOST_HEADERS} headers {names.WEBHOOK_HTTP_HEADER}")
    found: dict[str, str] = {}
    for each in own:
        read = _HTTP_HEADER.fullmatch(each or b"")
        name = read[1].decode().lower() if read else ""
        if read is None or is_reserved(name) or name in found:
            raise UnusableRecord(f"a header {names.WEBHOOK_HTTP_HEADER} is not an HTTP header that an endpoint may set")
        found[name] = read[2].decode()
    return found
