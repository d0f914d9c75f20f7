"""The head of a request: rules of RFC 9112 and RFC 9110 that the parser, llhttp, leaves to its user."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

import httptools

from gateway.door.errors import ApiError

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]{0,5})?")
"""Matches the value of `Host`: `uri-host` and port, by RFC 9112, section 3.2."""

MALFORMED = ApiError(400, "malformed_request", "The request is not HTTP/1.1 as RFC 9112 defines it.")


class RefusedHeadError(Exception):
    """The request's head is refused with this error."""

    def __init__(self, error: ApiError = MALFORMED) -> None:
        super().__init__(error.code)
        self.error = error


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a request: its decoded path, the path as it was sent, and its query."""

    path: str
    raw_path: bytes
    query: bytes


def check_fields(version: str, fields: Sequence[tuple[bytes, bytes]], *, upgrades: bool) -> None:
    """Refuse a head that another server on the way may read otherwise. Raises RefusedHeadError.

    `fields` have names in lower case. `upgrades` is true for a request with `Upgrade`: the parser ends such a request
    at its head, and would read the body as the next request.
    """
    hosts = [value for name, value in fields if name == b"host"]
    coded = [value.strip().lower() for name, value in fields if name == b"transfer-encoding"]
    if version not in ("1.0", "1.1") or len(hosts) > 1 or (version == "1.1" and not hosts):
        raise RefusedHeadError
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise RefusedHeadError
    if coded and (version == "1.0" or coded != [b"chunked"]):
        raise RefusedHeadError
    if upgrades and (coded or any(name == b"content-length" for name, _ in fields)):
        raise RefusedHeadError


def read_target(method: str, url: bytes) -> Target:
    """Read an absolute path, a whole URL, or `*` (RFC 9112, section 3.2). Raises RefusedHeadError.

    A NUL in the path or the query is refused here, because PostgreSQL stores no NUL, and the request could only fail
    later.
    """
    if method == "CONNECT":
        raise RefusedHeadError
    if url == b"*":
        return Target("*", b"*", b"")
    try:
        parsed = httptools.parse_url(url)
        raw = parsed.path or b"/"
        path = urllib.parse.unquote(raw.decode("ascii")) if b"%" in raw else raw.decode("ascii")
    except (httptools.HttpParserError, UnicodeDecodeError):
        raise RefusedHeadError from None
    query = parsed.query or b""
    if "\0" in path or b"%00" in query:
        raise RefusedHeadError
    return Target(path, raw, query)
