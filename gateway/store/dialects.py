"""Statements and texts that SQLite and PostgreSQL share.

SQLAlchemy builds the statements separately for each. PostgreSQL stores no NUL in text, and neither driver encodes a
lone surrogate. A NUL or a lone surrogate becomes U+FFFD, on the way into a row and in a comparison alike. So no name in
a request or on a topic can fail a statement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

from pydantic_core import to_json
from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Select,
    String,
    Table,
    Text,
    bindparam,
    func,
    literal,
    make_url,
    select,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator, TypeEngine

_MOST_TOGETHER = 64
"""The maximum number of rows of one statement; SQLite allows 32,766 parameters."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An INSERT of one row, in the form that the database's driver needs."""

    sql: str
    names: tuple[str, ...]
    """The columns, in the order of the parameters."""
    positional: bool
    converters: tuple[Callable[[Any], Any] | None, ...]
    """For each column, the function that converts the column's values; None if they need no conversion."""

    def of_rows(self, count: int) -> str:
        """Return the statement for several rows. SQLite's placeholders are question marks."""
        row = f"({', '.join('?' * len(self.names))})"
        return self.sql.replace(row, ", ".join([row] * count), 1)


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
    if prepared.positional:
        return _write_sqlite(connection, prepared, bound)
    bound = [dict(zip(prepared.names, values, strict=True)) for values in bound]
    return connection.exec_driver_sql(prepared.sql, bound if len(bound) > 1 else bound[0]).rowcount


def _write_sqlite(connection: Connection, prepared: _Prepared, rows: Sequence[tuple[Any, ...]]) -> int:
    """Write rows by few statements: Python's driver gives the interpreter's lock away for each statement of a row.

    The numbers of a statement's rows are powers of two, so that the driver's cache knows each statement.
    """
    written = begin = 0
    while begin < len(rows):
        count = min(_MOST_TOGETHER, 1 << (len(rows) - begin).bit_length() - 1)
        values = tuple(chain.from_iterable(rows[begin : begin + count]))
        written += connection.exec_driver_sql(prepared.of_rows(count), values).rowcount
        begin += count
    return written


@lru_cache(maxsize=64)
def _prepared(statement: sqlite.Insert, names: tuple[str, ...], dialect: Dialect) -> _Prepared:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    order = names if compiled.positiontup is None else tuple(compiled.positiontup)
    types = (statement.table.c[name].type for name in order)
    converters = tuple(each.dialect_impl(dialect).bind_processor(dialect) for each in types)
    return _Prepared(str(compiled), order, compiled.positiontup is not None, converters)


def rows_of(
    connection: Connection, columns: tuple[Column[Any], ...], pairs: Sequence[tuple[str, str]]
) -> Sequence[Any]:
    """Return the columns' values in the rows whose first two columns equal one of the pairs, by a prepared query."""
    dialect = connection.dialect.name
    return connection.execute(_pairs_query(dialect, columns), _pair_values(dialect, pairs)).all()


@lru_cache(maxsize=64)
def _pairs_query(dialect: str, columns: tuple[Column[Any], ...]) -> Select[Any]:
    return select(*columns).where(_pair_in(dialect, (columns[0], columns[1])))


def pair_in(
    connection: Connection, columns: tuple[Column[str], Column[str]], pairs: Iterable[tuple[str, str]]
) -> ColumnElement[bool]:
    """Return the condition that two columns of text equal one of the pairs. The pairs are storable texts."""
    dialect = connection.dialect.name
    return _pair_in(dialect, columns, _pair_values(dialect, list(pairs)))


def _pair_values(dialect: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    if dialect == "postgresql":
        return {"firsts": [first for first, _ in pairs], "seconds": [second for _, second in pairs]}
    return {"pairs": to_json(pairs).decode()}


def _pair_in(
    dialect: str, columns: tuple[Column[str], Column[str]], values: Mapping[str, Any] | None = None
) -> ColumnElement[bool]:
    """Return the condition. Without values, the pairs are parameters of the execution.

    All pairs are passed as one or two parameters, so that SQLite searches an index for each pair. With a parameter for
    each text, SQLite 3.40 reads the whole table, and SQLAlchemy takes more time than the database.
    """

    def parameter(name: str, kind: TypeEngine[Any]) -> BindParameter[Any]:
        return bindparam(name, type_=kind) if values is None else literal(values[name], kind)

    if dialect == "postgresql":
        firsts, seconds = (parameter(name, postgresql.ARRAY(Text)) for name in ("firsts", "seconds"))
        asked = func.unnest(firsts, seconds).table_valued("first", "second").render_derived()
        return tuple_(*columns).in_(select(asked.c.first, asked.c.second))
    each = func.json_each(parameter("pairs", Text())).table_valued("value")
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
