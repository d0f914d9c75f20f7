"""The statements that SQLite and PostgreSQL share, but SQLAlchemy has once for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from pydantic_core import to_json
from sqlalchemy import Column, ColumnElement, Connection, Table, Text, func, literal, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite


def insert(connection: Connection, table: Table) -> sqlite.Insert:
    """Return an INSERT with `on_conflict_do_nothing` and `on_conflict_do_update`, which both databases have."""
    if connection.dialect.name == "postgresql":
        return cast("sqlite.Insert", postgresql.insert(table))
    return sqlite.insert(table)


def insert_new(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> int:
    """Insert the rows whose primary key is new; return their number."""
    statement = insert(connection, table).on_conflict_do_nothing()
    return connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount


def write_rows(connection: Connection, statement: sqlite.Insert, rows: Sequence[dict[str, Any]]) -> None:
    """Execute an INSERT for rows that all have the same columns. The statement has no parameters beside them.

    Values are converted column by column. SQLAlchemy's own way, value by value, took three times as long as SQLite's
    insert.
    """
    dialect, names = connection.dialect, list(rows[0])
    compiled = statement.compile(dialect=dialect, column_keys=names)
    columns = {}
    for name in names:
        convert = statement.table.c[name].type.dialect_impl(dialect).bind_processor(dialect)
        values = [row[name] for row in rows]
        columns[name] = values if convert is None else list(map(convert, values))
    if compiled.positiontup is not None:
        bound: Any = list(zip(*(columns[name] for name in compiled.positiontup), strict=True))
    else:
        bound = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    connection.exec_driver_sql(str(compiled), bound)


def pair_in(
    connection: Connection, columns: tuple[Column[str], Column[str]], pairs: Iterable[tuple[str, str]]
) -> ColumnElement[bool]:
    """Return the condition that two columns of text hold one of the pairs. The pairs are storable texts.

    All pairs are one parameter, or two. SQLite searches an index for each pair; given the pairs as parameters of their
    own, SQLite 3.40 reads the whole table, and SQLAlchemy spends more time on them than the database.
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
