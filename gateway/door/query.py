"""Parameters of a request's query. All functions raise ApiError (400)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from starlette.requests import Request

from gateway.batches.paging import PageQuery, page_query
from gateway.errors import ApiError
from producers.times import NotATime, parse_time

_UNIX_SECONDS = re.compile(r"[0-9]{1,11}")
_COUNT = re.compile(r"[0-9]{1,9}")


def invalid(name: str, reason: str) -> ApiError:
    """Return the 400 for a parameter."""
    return ApiError(400, "invalid_parameter", f"{name}: {reason}", param=name)


def only(request: Request, names: Collection[str], prefix: str | None = None) -> None:
    """Refuse a parameter that is not in `names` and lacks the prefix, since a misspelt filter would filter nothing."""
    for name in request.query_params:
        if name not in names and not (prefix is not None and name.startswith(prefix)):
            known = ", ".join(sorted(names))
            raise ApiError(400, "unknown_parameter", f"A parameter is unknown; known here: {known}.", param=name[:64])


def page(request: Request) -> PageQuery:
    """Return the page that `limit`, `after` and `order` ask for."""
    return page_query(request.query_params)


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """Return a parameter that is a decimal number from `least` to `most`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not _COUNT.fullmatch(text) or not least <= int(text) <= most:
        raise invalid(name, f"is not a number from {least} to {most}")
    return int(text)


def time_ms(request: Request, name: str, now: float) -> int | None:
    """Return a time in Unix milliseconds: the parameter is Unix seconds, ISO 8601 or a duration before now (`-2h`)."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if _UNIX_SECONDS.fullmatch(text):
        return int(text) * 1000
    try:
        return parse_time(text, now)
    except NotATime:
        raise invalid(name, "is neither Unix seconds, nor ISO 8601, nor a duration before now such as -2h") from None


def one_of(request: Request, name: str, known: Iterable[str]) -> str | None:
    """Return a parameter that has one of the known values."""
    text = request.query_params.get(name)
    if text is not None and text not in (allowed := tuple(known)):
        raise invalid(name, f"is none of {', '.join(allowed)}")
    return text
