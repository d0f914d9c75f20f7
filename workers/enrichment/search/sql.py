"""Sources of `kind = "sql"`: one SELECT with bound parameters, in SQLite or PostgreSQL, by SQLAlchemy.

The database itself refuses to write: SQLite opens its file read-only, and PostgreSQL runs a read-only transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from telemetry.clock import Deadline
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.base import SearchQuery
from workers.enrichment.search.inside import InsideSource, SqlFile, filled
from workers.enrichment.search.service import RequestPace, Web

_CONTENTS: Final = frozenset({"text", "content", "link"})
_SQLITE: Final = "sqlite:///"
_STEPS: Final = 10_000
"""SQLite's virtual machine runs this many instructions between two checks of the time limit."""


class SqlSource(InsideSource):
    """Implements `SearchProvider`. The statement names its columns like a result's parts: `id`, `title` and so on."""

    def __init__(self, name: str, file: SqlFile, folder: Path, web: Web) -> None:
        super().__init__(name, file, folder)
        self._file = file
        self._statement = text(file.statement)
        self._bound = {*self._statement.compile().params}
        self._clock = web.clock
        self._pace = RequestPace(web.clock, 1 / file.per_second)
        self._threads = ThreadPoolExecutor(file.connections, thread_name_prefix="sql")

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`."""
        values = self.values_of(query)
        url = filled(self._file.url, self._with_secrets(query, values), encode=True)
        bound: dict[str, Any] = {name: value for name, value in values.items() if name in self._bound}
        await self._pace.turn()
        work = partial(self._rows, url, bound | {"limit": query.limit}, query.limit)
        rows = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        return [one for one in map(self.result_of, rows) if one is not None]

    def _rows(self, url: str, bound: dict[str, Any], limit: int) -> list[dict[str, Any]]:
        try:
            connection = self._engine(url).connect()
        except SQLAlchemyError:  # no error code tells a refused password from other failures
            raise Unreadable("the database could not be reached, or it refuses the operator's secret") from None
        with connection:
            try:
                self._limit_time(connection)
                result = connection.execute(self._statement, bound)
                columns = [name.lower() for name in result.keys()]  # noqa: SIM118 - a result is no dict
                rows = [dict(zip(columns, row, strict=True)) for row in result.fetchmany(limit)]
            except DBAPIError as error:
                raise Unreadable(f"the database ended the operator's statement: {_code(error.orig)}") from None
        if not _CONTENTS & {*columns}:
            raise Unreadable("the operator's statement has no column `text`, `content` or `link`")
        return rows

    def _engine(self, url: str) -> Engine:
        """Return an engine that opens a new connection for each search, so that a changed secret applies at once."""
        seconds = self._file.timeout_seconds
        if not url.startswith(_SQLITE):
            readonly = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": max(2, ceil(seconds))})
            return readonly.execution_options(postgresql_readonly=True)
        name = quote(url.removeprefix(_SQLITE), safe="/%")  # a URL is percent-encoded already, SQLite decodes it
        path = f"file:{name}?mode=ro"
        return create_engine("sqlite://", poolclass=NullPool, creator=lambda: sqlite3.connect(path, uri=True))

    def _limit_time(self, connection: Connection) -> None:
        seconds = self._file.timeout_seconds
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL statement_timeout = {ceil(seconds * 1000)}"))
            return
        deadline = Deadline.after(self._clock, seconds)
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection):
            driver.set_progress_handler(lambda: deadline.passed, _STEPS)


def _code(error: object) -> str:
    """Return the database's code for an error. The error's text is not used, since it may quote rows."""
    return getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None) or type(error).__name__
