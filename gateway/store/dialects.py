"""Statements and texts that SQLite and PostgreSQL share.

SQLAlchemy builds the statements separately for each. PostgreSQL stores no NUL in text, and neither driver encodes a
lone surrogate. A NUL or a lone surrogate becomes U+FFFD, on the way into a row and in a comparison alike. So no name in
a request or on a topic can fail a statement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from pydantic_core import to_json
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    String,
    Table,
    Text,
    func,
    literal,
    make_url,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An INSERT of one row, in the form that the database's driver needs."""

    sql: str
    names: tuple[str, ...]
    """The columns, in the order of the parameters."""
    positional: bool
    converters: tuple[Callable[[Any], Any] | None, ...]
    """For each column, the function that converts the column's values; None if they need no conversion."""


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database; None for one in memory, and for PostgreSQL."""
    parts = make_url(url)
    in_a_file = parts.get_backend_name() == "sqlite" and parts.database not in (None, "", ":memory:")
    return Path(str(parts.database)) if in_a_file else None


def insert(connection: Connection, table: Table) -> sqlite.Insert:
    """Return an INSERT with `on_conflict_do_nothing` and `on_conflict_do_update`, which both databases have."""
    return insert_of(connection.dialect.name, table)


@lru_cache(maxsize=64)
def insert_of(dialect: str, table: Table) -> sqlite.Insert:
    """Return `insert` for a dialect by its name: the same object at each call."""
    if dialect == "postgresql":
        return cast("sqlite.Insert", postgresql.insert(table))
    return sqlite.insert(table)


@lru_cache(maxsize=64)
def _insert_new(dialect: str, table: Table) -> sqlite.Insert:
    return insert_of(dialect, table).on_conflict_do_nothing()


def insert_new(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> int:
    """Insert the rows whose primary key is new; return their number."""
    return write_rows(connection, _insert_new(connection.dialect.name, table), rows)


def write_rows(connection: Connection, statement: sqlite.Insert, rows: Sequence[dict[str, Any]]) -> int:
    """Execute an INSERT for rows that all have the same columns; return the number of rows written.

    The statement has no parameters but the columns. The statement is prepared once for each statement object.
    SQLAlchemy alone would prepare it at each execution, and convert value by value, which took three times as long as
    SQLite's insert.
    """
    prepared = _prepared(statement, tuple(rows[0]), connection.dialect)
    columns = []
    for name, convert in zip(prepared.names, prepared.converters, strict=True):
        values = [row[name] for row in rows]
        columns.append(values if convert is None else list(map(convert, values)))
    bound: list[Any] = list(zip(*columns, strict=True))
    if not prepared.positional:
        bound = [dict(zip(prepared.names, values, strict=True)) for values in bound]
    return connection.exec_driver_sql(prepared.sql, bound if len(bound) > 1 else bound[0]).rowcount


@lru_cache(maxsize=64)
def _prepared(statement: sqlite.Insert, names: tuple[str, ...], dialect: Dialect) -> _Prepared:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    order = names if compiled.positiontup is None else tuple(compiled.positiontup)
    types = (statement.table.c[name].type for name in order)
    converters = tuple(each.dialect_impl(dialect).bind_processor(dialect) for each in types)
    return _Prepared(str(compiled), order, compiled.positiontup is not None, converters)


def pair_in(
    connection: Connection, columns: tuple[Column[str], Column[str]], pairs: Iterable[tuple[str, str]]
) -> ColumnElement[bool]:
    """Return the condition that two columns of text equal one of the pairs. The pairs are storable texts.

    All pairs are passed as one or two parameters, so that SQLite searches an index for each pair. With a parameter for
    each text, SQLite 3.40 reads the whole table, and SQLAlchemy takes more time than the database.
    """
    listed = list(pairs)
    if connection.dialect.name == "postgresql":
        texts = postgresql.ARRAY(Text)
        firsts, seconds = (literal([pair[place] for pair in listed], texts) for place in (0, 1))
        asked = func.unnest(firsts, seconds).table_valued("first", "second").render_derived()
        return tuple_(*columns).in_(select(asked.c.first, asked.c.second))
    each = func.json_each(literal(to_json(listed).decode(), Text)).table_valued("value")
    parts = (func.json_extract(each.c.value, f"$[{place}]") for place in (0, 1))
    return tuple_(*columns).in_(select(*parts).select_from(each))


_REPLACEMENT = "\ufffd"
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def storable(text: str) -> str:
    """Return the text as both databases store it."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\x00", _REPLACEMENT)


class Name(TypeDecorator[str]):
    """A text of at most `length` characters. A longer text is cut."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self._most = length

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        """Return the value in the form that a statement needs: storable, and cut to the length."""
        return None if value is None else storable(value)[: self._most]


def storable_json(value: Any) -> str:
    """Return compact JSON without NULs and lone surrogates, which the databases cannot store or search."""
    text = storable(_ENCODER.encode(value))
    return text.replace("\\u0000", _REPLACEMENT)
