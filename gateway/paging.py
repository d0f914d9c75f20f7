"""Pages of a list, whose objects are ordered by id. Ids sort by their time of creation.

So the next page begins after an id even if its object was deleted meanwhile.
Source: OpenAI's API reference, "List files" and "List batches".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, Table, select

from gateway.errors import ApiError, not_found

_IDS = {"file": re.compile(r"file-[A-Za-z0-9_-]{1,58}"), "batch": re.compile(r"batch_[A-Za-z0-9_-]{1,58}")}
DEFAULT_LIMIT = 20
_LIMIT = re.compile(r"[0-9]{1,6}")


@dataclass(frozen=True, slots=True)
class PageQuery:
    """The query of one page."""

    after: str | None
    limit: int
    order: Literal["asc", "desc"]

    @property
    def ascending(self) -> bool:
        """True if the oldest object comes first."""
        return self.order == "asc"


FIRST_PAGE = PageQuery(None, DEFAULT_LIMIT, "desc")


@dataclass(frozen=True, slots=True)
class RowPage:
    """The rows of one page."""

    rows: Sequence[Row[Any]]
    has_more: bool


def page_query(
    said: Mapping[str, str], *, most: int = 100, default: int = DEFAULT_LIMIT, kind: str | None = None
) -> PageQuery:
    """Read `after`, `limit` and `order` of a query string. Raises ApiError (400, 404).

    With a `kind`, `after` has the form of its ids, and may name an object that was deleted meanwhile.
    """
    after, limit, order = said.get("after") or None, said.get("limit", str(default)), said.get("order", "desc")
    if kind is not None and after is not None and not _IDS[kind].fullmatch(after):
        raise not_found(kind, after)
    if not _LIMIT.fullmatch(limit) or not 1 <= int(limit) <= most:
        raise ApiError(400, "invalid_value", f"`limit` is a number from 1 to {most}.", "limit")
    if order == "asc":
        return PageQuery(after, int(limit), "asc")
    if order == "desc":
        return PageQuery(after, int(limit), "desc")
    raise ApiError(400, "invalid_value", "`order` is `asc` or `desc`.", "order")


def read_page(connection: Connection, table: Table, where: Sequence[ColumnElement[bool]], query: PageQuery) -> RowPage:
    """Read one page of the rows that match `where`."""
    key = table.c.id
    statement = select(table).where(*where).limit(query.limit + 1)
    if query.ascending:
        statement = statement.order_by(key.asc())
        statement = statement if query.after is None else statement.where(key > query.after)
    else:
        statement = statement.order_by(key.desc())
        statement = statement if query.after is None else statement.where(key < query.after)
    rows = connection.execute(statement).all()
    return RowPage(rows[: query.limit], len(rows) > query.limit)


def find_row(
    connection: Connection, table: Table, kind: str, tenant: str, identifier: str, *also: Any, lock: bool = False
) -> Row[Any]:
    """Return the tenant's row with this id that fulfils the conditions `also`. Raises ApiError (404)."""
    statement = select(table).where(table.c.id == identifier, table.c.tenant == tenant, *also)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise not_found(kind, identifier)
    return row


def list_body(objects: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return the JSON of a page."""
    return {
        "object": "list",
        "data": objects,
        "first_id": objects[0]["id"] if objects else None,
        "last_id": objects[-1]["id"] if objects else None,
        "has_more": has_more,
    }
