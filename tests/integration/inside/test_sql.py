"""Sources of `kind = "sql"`: the file of docs/howto/inside-sources.md on PostgreSQL, and SQLite with FTS5."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest

from tests.integration.inside.page import Asking, asking, written
from tests.integration.openai_server import judging
from tests.integration.profiled_worker import working
from tests.postgres_server import PostgresServer
from workers.enrichment.evidence import Found

ADDRESS = "reader:{password}@db.clinic.example/guidelines"
QUESTION = "When is dialysis begun?"
SEARCH = {"provider": "guidelines", "query": QUESTION}
SQLITE = """kind = "sql"
url = "sqlite:///{path}"
timeout_seconds = 0.3
statement = "{statement}"
[tenants."*"]
"""
FOUND = "SELECT rowid AS id, title, body AS text FROM guideline WHERE guideline MATCH :any ORDER BY rank LIMIT :limit"


@pytest.fixture(scope="module")
def address(postgres: PostgresServer) -> str:
    """The address of a database with guidelines of two wards, for a role with a password."""
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    postgres.command(
        "CREATE TABLE guideline (number int, title text, body text, ward text, valid_from date)",
        "INSERT INTO guideline VALUES "
        "(7, 'Dialysis', 'Dialysis is begun at a GFR below 6.', 'nephrology', '2025-03-01'), "
        "(8, 'Dialysis at night', 'Dialysis is begun at midnight.', 'surgery', '2025-03-01')",
        "CREATE ROLE reader LOGIN PASSWORD 'clinic-9c1d'",
        "GRANT SELECT, INSERT ON guideline TO reader",
        database=name,
    )
    return f"reader:{{password}}@127.0.0.1:{postgres.port}/{name}"


async def test_rows_of_the_tenants_ward_are_sources(address: str, tmp_path: Path) -> None:
    inside = written(tmp_path, "guidelines", {ADDRESS: address}, password="clinic-9c1d")
    async with (
        judging("Dialysis is begun at a GFR below 6. [1]") as (engine, _),
        working(engine, inside=inside) as worker,
    ):
        result = await worker.result({"search": SEARCH}, QUESTION, "clinic")
    assert (result.outcome, result.sources) == ("succeeded", ["guidelines:7"])
    assert [(one.title, one.published) for one in result.source_details] == [("Dialysis", "2025-03-01")]


async def test_a_wrong_password_and_a_database_that_is_away_are_notes(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = written(tmp_path, "guidelines", {ADDRESS: address}, password="wrong-3a7f")
    async with working(inside=inside) as worker:
        wrong = await worker.result({"search": SEARCH}, QUESTION, "clinic")
    written(tmp_path, "guidelines", {ADDRESS: "reader:{password}@127.0.0.1:9/x"}, password="wrong-3a7f")
    async with working(inside=inside) as worker:
        away = await worker.result({"search": SEARCH, "required": True}, QUESTION, "clinic")
    why = "the database could not be reached, or it refuses the operator's secret"
    assert (wrong.outcome, away.outcome) == ("succeeded", "failed")
    assert wrong.notes[0] == f"the search at guidelines brought nothing: {why}"
    assert away.error is not None
    assert why in away.error.message
    assert "wrong-3a7f" not in caplog.text + wrong.model_dump_json() + away.model_dump_json()


async def test_a_statement_that_writes_is_refused_by_postgresql(address: str, tmp_path: Path) -> None:
    writes = "WITH x AS (INSERT INTO guideline (body) VALUES (:query) RETURNING body) SELECT body AS text FROM x"
    inside = written(tmp_path, "guidelines", {ADDRESS: address}, password="clinic-9c1d")
    (tmp_path / "guidelines.toml").write_text(
        f'kind = "sql"\nurl = "postgresql+psycopg://{address}"\nstatement = "{writes} LIMIT :limit"\n'
        '[tenants."*"]\nsecrets.password = "clinic.password"\n'
    )
    async with asking(inside) as database:
        assert await database.failure(SEARCH) == "the database ended the operator's statement: 25006"


@pytest.fixture
def guidelines(tmp_path: Path) -> Path:
    """An SQLite file with a full-text table."""
    path = tmp_path / "guidelines.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE VIRTUAL TABLE guideline USING fts5(title, body)")
        database.executemany(
            "INSERT INTO guideline VALUES (?, ?)",
            [("Dialysis", "Dialysis is begun at a GFR below 6."), ("Diet", "Salt is left out.")],
        )
    return path


def sqlite(path: Path, statement: str) -> AbstractAsyncContextManager[Asking]:
    """Searches of one SQLite file."""
    (path.parent / "guidelines.toml").write_text(SQLITE.format(path=path, statement=statement))
    return asking(path.parent)


async def test_sqlite_is_searched_by_its_full_text_index(guidelines: Path) -> None:
    odd = """dialysis" OR title:'x' * (begun) NEAR/2 -- ; DROP TABLE guideline"""
    async with sqlite(guidelines, FOUND) as database:
        for query in (QUESTION, odd):
            assert await database.found({**SEARCH, "query": query}) == [
                Found("", "guidelines:1", "Dialysis", "Dialysis is begun at a GFR below 6.")
            ]


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("SELECT nosuch AS text FROM guideline LIMIT :limit", "ended the operator's statement: SQLITE_ERROR"),
        ("SELECT title FROM guideline LIMIT :limit", "has no column `text`, `content` or `link`"),
        (
            "WITH RECURSIVE n(text) AS (SELECT 1 UNION ALL SELECT text + 1 FROM n) SELECT max(text) AS text FROM n "
            "LIMIT :limit",
            "ended the operator's statement: SQLITE_INTERRUPT",
        ),
    ],
)
async def test_a_statement_that_fails_or_has_no_end_ends_the_search_with_a_reason(
    guidelines: Path, statement: str, why: str
) -> None:
    async with sqlite(guidelines, statement) as database:
        assert (await database.failure(SEARCH)).endswith(why)


async def test_an_sqlite_file_is_opened_to_read_only(guidelines: Path) -> None:
    async with sqlite(guidelines, FOUND) as database:
        guidelines.unlink()
        assert "could not be reached" in await database.failure(SEARCH)
        assert not guidelines.exists()
