"""Reads lists that the gateway sends in pages (OpenAI API reference, "List files" and "List batches")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from postback_client.errors import UnreadableAnswer
from postback_client.http_session import HttpSession
from postback_client.shapes import read

_PER_PAGE = "100"


class HasId(Protocol):
    """An object of a list. The next page begins after the last object's id."""

    @property
    def id(self) -> str:
        """The object's id."""
        ...


Listed = TypeVar("Listed", bound=HasId)


def listed(
    http: HttpSession, path: str, kind: type[Listed], params: Mapping[str, str] | None = None
) -> Iterator[Listed]:
    """Yield all objects of a list, page by page. Raises PostbackError."""
    asked = {"limit": _PER_PAGE, **(params or {})}
    while True:
        page = http.json("GET", path, params=asked)
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):
            raise UnreadableAnswer(f"the answer to GET {path} is not a list")
        found = [read(kind, each) for each in page["data"]]
        yield from found
        if not found or page.get("has_more") is not True:
            return
        asked["after"] = found[-1].id
