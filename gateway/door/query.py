"""Parameters of a request's query. All functions raise ApiError (400)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from starlette.requests import Request

from gateway.errors import ApiError, not_found
from gateway.paging import PageQuery, list_body, page_query
from producers.times import NotATime, parse_time

_UNIX_SECONDS = re.compile(r"[0-9]{1,11}")
_COUNT = re.compile(r"[0-9]{1,9}")
_MOST_KEYS = 8


def invalid(name: str, reason: str) -> ApiError:
    """Return the 400 for a parameter."""
    return ApiError(400, "invalid_parameter", f"{name}: {reason}", param=name)


def only(request: Request, names: Collection[str], prefix: str | None = None) -> None:
    """Refuse a parameter that is not in `names` and lacks the prefix, since a misspelt filter would filter nothing."""
    for name in request.query_params:
        if name not in names and not (prefix is not None and name.startswith(prefix)):
            known = ", ".join(sorted(names))
            raise ApiError(400, "unknown_parameter", f"A parameter is unknown; known here: {known}.", param=name[:64])


def page(request: Request, order: str = "desc") -> PageQuery:
    """Return the page that `limit`, `after` and `order` ask for; `order` is the default of the last one."""
    return page_query({"order": order, **request.query_params})


def page_of(items: Sequence[dict[str, Any]], wanted: PageQuery, kind: str) -> dict[str, Any]:
    """Return the page of a list that is whole in memory, oldest first. Raises ApiError (404) for an unknown `after`."""
    ordered = list(items) if wanted.ascending else list(reversed(items))
    ids = [item["id"] for item in ordered]
    if wanted.after is not None and wanted.after not in ids:
        raise not_found(kind, wanted.after)
    rest = ordered[ids.index(wanted.after) + 1 :] if wanted.after is not None else ordered
    return list_body(rest[: wanted.limit], has_more=len(rest) > wanted.limit)


def labels(request: Request, opening: str, closing: str = "") -> dict[str, str]:
    """Return the metadata that jobs must have: a parameter's name is `opening`, the key and `closing`."""
    found = {
        name.removeprefix(opening).removesuffix(closing): value
        for name, value in request.query_params.items()
        if name.startswith(opening) and name.endswith(closing)
    }
    if len(found) > _MOST_KEYS:
        raise invalid("metadata", f"filters by more than {_MOST_KEYS} keys")
    for key in found:
        if not 1 <= len(key) <= 64 or '"' in key:
            raise invalid("metadata", "has a key that is not 1 to 64 characters without quotation marks")
    return found


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
