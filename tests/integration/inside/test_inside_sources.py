"""Sources inside an organisation, with the files of docs/howto/inside-sources.md, at servers like the real ones."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.pdf_files import line, pdf
from tests.integration.inside.page import Asking, asking, job_of_the_page, written
from tests.integration.inside.servers import (
    BANKS_KEY,
    FHIR_TOKEN,
    GRAPH_TOKEN,
    INSURERS_KEY,
    LEI,
    NOTES_TOKEN,
    PERSON,
    bureau,
    fhir,
    letter,
    mcp_server,
    observation,
    sparql,
)
from tests.integration.openai_server import judging
from tests.integration.profiled_worker import working
from tests.integration.raw_server import saying, speaking
from tests.integration.search_services import Reply, answering, in_json, page_of_html
from tests.postgres_server import PostgresServer
from workers.egress import EgressPolicy
from workers.enrichment.evidence import Found

HOST = "https://fhir.clinic.example"
RECORDS = (
    observation("o1", "p1", "Creatinine", 71.5, "umol/L", "2024-03-05T08:00:00Z"),
    observation("o2", "p1", "Creatinine", 140.0, "umol/L", "2025-06-01T08:00:00Z"),
    observation("o3", "p1", "Sodium", 141.0, "mmol/L", "2025-06-01T08:00:00Z"),
    observation("o4", "p2", "Creatinine", 99.0, "umol/L", "2025-06-02T08:00:00Z"),
)
LABS = job_of_the_page()["sources"]["search"]
CREATININES = "What is the creatinine?"
CREATININE = in_json({"items": [{"id": "1", "text": "Creatinine is 140."}]})
PLAIN_SEARCH = {"provider": "labs", "query": "creatinine"}
PLAIN = """kind = "http_json"
url = "{url}/find?q={{query}}&p={{{page}}}"
{more}
[read]
items = "items"
text = "text"
link = "link"
id = "id"
[tenants."*"]
"""


def labs_file(folder: Path, url: str, token: str = FHIR_TOKEN) -> Path:
    return written(folder, "labs", {HOST: url}, token=token)


def plain(folder: Path, url: str, more: str = "", page: str = "page") -> AbstractAsyncContextManager[Asking]:
    """Searches of one source at this address."""
    (folder / "labs.toml").write_text(PLAIN.format(url=url, more=more, page=page))
    return asking(folder)


async def test_a_patients_values_are_sources_of_an_answer_with_date_and_id(tmp_path: Path) -> None:
    async with fhir(*RECORDS, most=1) as server, judging("Creatinine 140.0 umol/L [1]") as (engine, asked):
        inside = labs_file(tmp_path, server.url)
        async with working(engine, inside=inside, guard=EgressPolicy()) as worker:
            result = await worker.result({"search": LABS}, job_of_the_page()["prompt"], tenant="clinic")
        assert (result.outcome, result.notes) == ("succeeded", [])
        assert result.sources == ["labs:Observation/o2"]
        [cited] = result.source_details
        assert (cited.title, cited.published, cited.url) == ("Creatinine", "2025-06-01", None)
        assert "71.5 umol/L" in asked[0]["messages"][0]["content"]
        assert [request.query.get("_offset") for request in server.asked] == [None, "1"]
        assert FHIR_TOKEN not in result.model_dump_json()


async def test_documents_are_read_by_their_media_type(tmp_path: Path) -> None:
    said = pdf([line("The biopsy of the kidney shows nephritis.")])
    letters = (
        letter("d1", "p1", "Biopsy", "2025-01-02T00:00:00Z", "application/pdf", said),
        letter("d2", "p1", "Visit", "2025-02-02T00:00:00Z", "text/html", b"<p>The kidney is <b>swollen</b>.</p>"),
    )
    async with fhir(*letters) as server, judging("The biopsy shows nephritis. The kidney is swollen.") as (engine, _):
        inside = written(tmp_path, "letters", {HOST: server.url}, token=FHIR_TOKEN)
        async with working(engine, inside=inside) as worker:
            search = {**LABS, "provider": "letters"}
            result = await worker.result({"search": search}, "What does the biopsy of the kidney show?", "clinic")
    assert result.sources == ["letters:DocumentReference/d1", "letters:DocumentReference/d2"]


async def test_a_changed_secret_is_used_at_once(tmp_path: Path) -> None:
    async with (
        fhir(*RECORDS) as server,
        asking(labs_file(tmp_path, server.url, "wrong-5e9b")) as labs,
    ):
        assert "refuses" in await labs.failure(LABS)
        (tmp_path / "clinic.token").write_text(FHIR_TOKEN)
        assert len(await labs.found(LABS)) == 2
        (tmp_path / "clinic.token").unlink()
        assert await labs.failure({**LABS, "query": "sodium"}) == "the operator's secret cannot be read"


async def test_to_another_tenant_the_source_does_not_exist(tmp_path: Path) -> None:
    async with fhir(*RECORDS) as server, asking(labs_file(tmp_path, server.url)) as labs:
        unknown = await labs.failure({**LABS, "provider": "nosuch"})
        assert await labs.failure(LABS, "elsewhere") == unknown
        await labs.found(LABS)
        assert await labs.failure(LABS, "elsewhere") == unknown
        assert len(server.asked) == 1


@pytest.mark.parametrize(("more", "asked"), [("", 2), ("fresh_seconds = 0", 3)])
async def test_results_are_cached_for_each_tenant_as_long_as_the_file_states(
    tmp_path: Path, more: str, asked: int
) -> None:
    async with answering(CREATININE) as service, plain(tmp_path, service.url, more) as labs:
        for tenant in ("a", "a", "b"):
            assert [one.text for one in await labs.found(PLAIN_SEARCH, tenant)] == ["Creatinine is 140."]
        assert len(service.asked) == asked


OTHER_FORM = "the parameter {} has another form than the source takes"


@pytest.mark.parametrize(
    ("provider", "parameters", "why"),
    [
        ("labs", {}, "the source takes these parameters: patient"),
        ("labs", {"patient": "p1", "ward": "3"}, "the source takes these parameters: patient"),
        ("labs", {"patient": "p1&_count=9"}, OTHER_FORM.format("patient")),
        ("labs", {"patient": "p1\n"}, OTHER_FORM.format("patient")),
        ("pubmed", {"patient": "p1"}, "this search provider takes no parameters"),
        *(
            ("graph", {"lei": lei}, OTHER_FORM.format("lei"))
            for lei in (f'{LEI}" }} #', f'" . ?s ?p "{LEI}', LEI[1:], f"{LEI}\\", LEI.lower())
        ),
    ],
)
async def test_a_job_gives_the_parameters_that_the_file_names_in_their_form(
    tmp_path: Path, provider: str, parameters: dict[str, str], why: str
) -> None:
    async with fhir(*RECORDS) as server, sparql() as graph:
        labs_file(tmp_path, server.url)
        async with asking(graph_file(tmp_path, graph.url)) as sources:
            search = {"provider": provider, "query": "x", "parameters": parameters}
            assert await sources.failure(search, "bank" if provider == "graph" else "clinic") == why
        assert (server.asked, graph.asked) == ([], [])


async def test_a_query_is_one_value_of_the_url_whatever_it_holds(tmp_path: Path) -> None:
    async with answering(CREATININE) as service, plain(tmp_path, service.url) as labs:
        await labs.found({**PLAIN_SEARCH, "query": "a&b=c#d/../é {page} %41"})
        assert service.queries == [{"q": "a&b=c#d/../é {page} %41", "p": "1"}]
        text = (tmp_path / "labs.toml").read_text().replace("/find?q={query}", "/{words}/x?").replace("&p=", "p=")
        (tmp_path / "labs.toml").write_text(text)
        async with asking(tmp_path) as dots:
            assert "no word" in await dots.failure({**PLAIN_SEARCH, "query": ".."})


@pytest.mark.parametrize(
    ("pages", "more", "page", "asked"),
    [
        ([{"items": [{"text": str(at)}]} for at in range(5)], "", "page", ["1", "2", "3"]),
        (
            [{"items": [{"text": str(at)}], "next": cursor} for at, cursor in enumerate(["a&b", "c", ""])],
            'next = "next"',
            "cursor",
            ["", "a&b", "c"],
        ),
    ],
    ids=["numbers", "cursors"],
)
async def test_pages_are_read_until_there_are_enough_results(
    tmp_path: Path, pages: list[Any], more: str, page: str, asked: list[str]
) -> None:
    async with (
        answering(*map(in_json, pages)) as service,
        plain(tmp_path, service.url, f"pages = 9\n{more}", page) as labs,
    ):
        assert [one.text for one in await labs.found({**PLAIN_SEARCH, "limit": 3})] == ["0", "1", "2"]
        assert [query["p"] for query in service.queries] == asked


async def test_a_next_page_on_another_server_gets_no_secret(tmp_path: Path) -> None:
    async with answering(CREATININE) as other:
        here = in_json({"items": [{"text": "Creatinine."}], "next": f"{other.url}/more"})
        async with answering(here) as service, plain(tmp_path, service.url, 'pages = 9\nnext = "next"') as labs:
            assert await labs.failure(PLAIN_SEARCH) == "the source's next page is on another server"
        assert other.asked == []


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (in_json({"items": [{}] * 1001}), "the source's answer has too many items"),
        (page_of_html(), "the search service's answer is not JSON"),
        (page_of_html(500), "the search service answered 500"),
        (page_of_html(403), "the source refuses the operator's secret"),
    ],
)
async def test_an_answer_of_another_form_is_a_reason(tmp_path: Path, reply: Reply, why: str) -> None:
    async with answering(reply) as service, plain(tmp_path, service.url) as labs:
        assert await labs.failure(PLAIN_SEARCH) == why


async def test_a_found_link_is_read_behind_the_guard(tmp_path: Path) -> None:
    link = in_json({"items": [{"link": "http://127.0.0.1:9/internal"}]})
    async with (
        answering(link) as service,
        plain(tmp_path, service.url),
        working(inside=tmp_path, guard=EgressPolicy()) as worker,
    ):
        result = await worker.result({"search": PLAIN_SEARCH})
    assert any("the address is not public" in note for note in result.notes)


BUREAU, GRAPH = "https://api.bureau.example", "https://graph.bank.example/sparql"
PAYS = "How well does the person pay the loan?"
REPORT = {"provider": "bureau", "query": PAYS, "parameters": {"person": PERSON}}
WHO = "Who owns Halvorsen Steel?"
RELATIONS = {"provider": "graph", "query": WHO, "parameters": {"lei": LEI}}


def bureau_file(folder: Path, url: str, key: str = BANKS_KEY) -> Path:
    return written(folder, "bureau", {BUREAU: url}, key=key, insurers_key=INSURERS_KEY)


def graph_file(folder: Path, url: str, token: str = GRAPH_TOKEN) -> Path:
    return written(folder, "graph", {GRAPH: f"{url}/sparql"}, graph_token=token)


async def test_a_report_of_a_credit_bureau_is_the_source_of_an_answer(tmp_path: Path) -> None:
    said = "Vesla Bank's car loan has two instalments overdue [2]."
    async with bureau() as server, judging(said) as (engine, asked):
        inside = bureau_file(tmp_path, server.url)
        async with working(engine, inside=inside, guard=EgressPolicy()) as worker:
            result = await worker.result({"search": REPORT}, PAYS, "bank")
    assert (result.outcome, result.notes) == ("succeeded", [])
    assert result.sources == ["bureau:A7"]
    [cited] = result.source_details
    assert (cited.title, cited.published, cited.url) == ("Car loan", "2026-01-15", None)
    assert "Risk score 612" in asked[0]["messages"][0]["content"]
    assert "18250 EUR" in asked[0]["messages"][0]["content"]
    assert BANKS_KEY not in result.model_dump_json()


async def test_each_tenant_asks_the_bureau_with_its_own_key_and_purpose(tmp_path: Path) -> None:
    async with bureau() as server, asking(bureau_file(tmp_path, server.url)) as reports:
        for tenant in ("bank", "insurer", "bank"):
            assert [one.id for one in await reports.found(REPORT, tenant)] == ["bureau:S1", "bureau:A7"]
        assert [body["purpose"] for body in server.asked] == ["credit", "underwriting", "credit"]
        assert server.asked[0] == {"person": PERSON, "purpose": "credit", "most": 5}
        assert await reports.found({**REPORT, "parameters": {"person": "0" * 11}}, "bank") == []
        assert "no search provider" in await reports.failure(REPORT, "clinic")
        assert len(server.asked) == 4


async def test_relations_in_a_knowledge_graph_are_sources_of_an_answer(tmp_path: Path) -> None:
    async with sparql() as server, judging("Halvorsen Steel is owned by Vesla Holding [1].") as (engine, asked):
        async with working(engine, inside=graph_file(tmp_path, server.url), guard=EgressPolicy()) as worker:
            result = await worker.result({"search": RELATIONS}, WHO, "bank")
        assert (result.outcome, result.notes) == ("succeeded", [])
        assert result.sources == ["graph:is-owned-by-Vesla-Holding"]
        assert result.source_details[0].title == "Halvorsen Steel"
        assert "Halvorsen Steel supplies Tårnby Bridges" in asked[0]["messages"][0]["content"]
        assert "Nordfjord" not in asked[0]["messages"][0]["content"]
        assert GRAPH_TOKEN not in result.model_dump_json()


async def test_a_query_to_the_graph_has_the_jobs_limit(tmp_path: Path) -> None:
    async with sparql() as server, asking(graph_file(tmp_path, server.url)) as graph:
        assert len(await graph.found({**RELATIONS, "limit": 1}, "bank")) == 1
        assert len(await graph.found({**RELATIONS, "limit": 2}, "bank")) == 2
        assert server.asked[0].endswith(" LIMIT 1")


MIB = 1024 * 1024
NOTES_HOST = "https://notes.clinic.example"
TOOL = 'tool = "search_notes"\narguments = { text = "{query}", most = "{limit}" }'
WANTS = "Does the patient want dialysis?"
NOTES = {"provider": "notes", "query": "dialysis", "limit": 2}


def notes_file(folder: Path, url: str, token: str = NOTES_TOKEN, tool: str = TOOL) -> Path:
    return written(folder, "notes", {NOTES_HOST: url, TOOL: tool}, token=token)


BLOCKS = ["The patient asked for dialysis.", "The patient refuses dialysis."]


async def test_blocks_of_a_tools_answer_are_sources(tmp_path: Path) -> None:
    async with mcp_server() as url, judging(" ".join(BLOCKS)) as (engine, _):
        inside = notes_file(tmp_path, url)
        async with working(engine, inside=inside) as worker:
            result = await worker.result({"search": NOTES}, WANTS, "clinic")
    assert result.outcome == "succeeded"
    assert result.sources[1:] == ["notes:note://7"]
    assert result.sources[0].startswith("notes:")
    assert NOTES_TOKEN not in result.model_dump_json()


async def test_a_server_without_sessions_answers_too(tmp_path: Path) -> None:
    async with mcp_server(stateless=True) as url, asking(notes_file(tmp_path, url)) as notes:
        assert [one.text for one in await notes.found(NOTES)] == [BLOCKS[0], None]


async def test_a_structured_answer_is_read_like_json(tmp_path: Path) -> None:
    read = (
        'tool = "list_notes"\narguments.text = "{query}"\nread.items = "notes"\nread.id = "number"\n'
        'read.text = "note"\nread.date = "day"'
    )
    async with (
        mcp_server() as url,
        asking(notes_file(tmp_path, url, tool=read)) as notes,
    ):
        [one] = await notes.found(NOTES)
    assert (one.id, one.text, one.particulars.published) == ("notes:3", "Dialysis was begun: dialysis", "2025-04-01")


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        ('tool = "broken"', "the MCP server's tool reports an error"),
        ('tool = "nosuch"', "the MCP server's tool reports an error"),
        (f'{TOOL}\nread.text = "note"', "the MCP server's tool answers with other content than JSON"),
    ],
)
async def test_a_tool_that_fails_is_a_reason_without_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tool: str, why: str
) -> None:
    async with mcp_server() as url, asking(notes_file(tmp_path, url, tool=tool)) as notes:
        assert await notes.failure(NOTES) == why
    assert NOTES_TOKEN not in caplog.text


@pytest.mark.parametrize("answer", [b"{}", b"[1]", b'{"jsonrpc": "2.0"'])
async def test_an_answer_that_is_no_mcp_ends_the_search_with_a_reason(tmp_path: Path, answer: bytes) -> None:
    async with (
        speaking(saying(answer, "Content-Type: application/json")) as url,
        asking(notes_file(tmp_path, url)) as notes,
    ):
        assert await notes.failure(NOTES) == "the MCP server's answer broke off or is not MCP"


async def test_an_endless_answer_is_given_up_once_it_is_too_large(tmp_path: Path) -> None:
    sent = 0

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        with suppress(OSError):
            while sent < 64 * MIB:
                writer.write(b" " * MIB)
                await writer.drain()
                sent += MIB

    async with (
        speaking(endless) as url,
        asking(notes_file(tmp_path, url)) as notes,
    ):
        assert await notes.failure(NOTES) == "the MCP server's answer broke off or is not MCP"
    assert sent < 32 * MIB


ADDRESS = "reader:{password}@db.clinic.example/guidelines"
BEGUN = "When is dialysis begun?"
GUIDELINES = {"provider": "guidelines", "query": BEGUN}
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


def guidelines_file(folder: Path, url: str, password: str = "clinic-9c1d") -> Path:
    return written(folder, "guidelines", {ADDRESS: url}, password=password)


async def test_rows_of_the_tenants_ward_are_sources(address: str, tmp_path: Path) -> None:
    inside = guidelines_file(tmp_path, address)
    async with (
        judging("Dialysis is begun at a GFR below 6. [1]") as (engine, _),
        working(engine, inside=inside) as worker,
    ):
        result = await worker.result({"search": GUIDELINES}, BEGUN, "clinic")
    assert (result.outcome, result.sources) == ("succeeded", ["guidelines:7"])
    assert [(one.title, one.published) for one in result.source_details] == [("Dialysis", "2025-03-01")]


async def test_a_statement_that_writes_is_refused_by_postgresql(address: str, tmp_path: Path) -> None:
    writes = "WITH x AS (INSERT INTO guideline (body) VALUES (:query) RETURNING body) SELECT body AS text FROM x"
    inside = guidelines_file(tmp_path, address)
    (tmp_path / "guidelines.toml").write_text(
        f'kind = "sql"\nurl = "postgresql+psycopg://{address}"\nstatement = "{writes} LIMIT :limit"\n'
        '[tenants."*"]\nsecrets.password = "clinic.password"\n'
    )
    async with asking(inside) as database:
        assert await database.failure(GUIDELINES) == "the database ended the operator's statement: 25006"


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
        for query in (BEGUN, odd):
            assert await database.found({**GUIDELINES, "query": query}) == [
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
        assert (await database.failure(GUIDELINES)).endswith(why)


async def test_a_space_in_the_name_of_an_sqlite_file_is_written_as_in_any_url(guidelines: Path) -> None:
    guidelines.rename(guidelines.with_name("old guidelines #7?.db"))
    (guidelines.parent / "guidelines.toml").write_text(
        SQLITE.format(path=f"{guidelines.parent}/{{age}}%20guidelines%20#7?.db", statement=FOUND)
        + 'values.age = "old"\n'
    )
    async with asking(guidelines.parent) as database:
        assert len(await database.found(GUIDELINES)) == 1


async def test_an_sqlite_file_is_opened_to_read_only(guidelines: Path) -> None:
    async with sqlite(guidelines, FOUND) as database:
        guidelines.unlink()
        assert "could not be reached" in await database.failure(GUIDELINES)
        assert not guidelines.exists()


# -- failures of each kind of source -----------------------------------------------------------------------------------

SECRET_REFUSED, SERVICE_AWAY = "the source refuses the operator's secret", "the search service could not be reached"
DATABASE_AWAY = "the database could not be reached, or it refuses the operator's secret"


@asynccontextmanager
async def database_at(address: str) -> AsyncIterator[str]:
    yield address


@dataclass(frozen=True)
class Example:
    """One of the page's files, its server, a search of it, and the reasons of its failures."""

    server: Callable[[str], AbstractAsyncContextManager[Any]]
    file: Callable[[Path, str, str], Path]
    search: dict[str, Any]
    tenant: str
    wrong: str = SECRET_REFUSED
    away: str = SERVICE_AWAY


EXAMPLES = [
    Example(lambda _: fhir(*RECORDS), labs_file, LABS, "clinic"),
    Example(lambda _: bureau(), bureau_file, REPORT, "bank"),
    Example(lambda _: sparql(), graph_file, RELATIONS, "bank"),
    Example(lambda _: mcp_server(), notes_file, NOTES, "clinic", away="the MCP server could not be reached"),
    Example(database_at, guidelines_file, GUIDELINES, "clinic", DATABASE_AWAY, DATABASE_AWAY),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.search["provider"])
async def test_a_job_ends_with_a_named_reason_if_the_secret_is_wrong_or_the_server_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, address: str, example: Example
) -> None:
    search, name = example.search, example.search["provider"]
    async with example.server(address) as server:
        inside = example.file(tmp_path, getattr(server, "url", server), "wrong-5e9b")
        async with working(inside=inside) as worker:
            wrong = await worker.result({"search": search}, "Why?", example.tenant)
    if server == address:
        example.file(tmp_path, "reader:{password}@127.0.0.1:9/x", "wrong-5e9b")
    async with working(inside=inside) as worker:
        away = await worker.result({"search": search}, "Why?", example.tenant)
        needing = await worker.result({"search": search, "required": True}, "Why?", example.tenant)
    assert (wrong.outcome, away.outcome, needing.outcome) == ("succeeded", "succeeded", "failed")
    assert wrong.notes[0] == f"the search at {name} brought nothing: {example.wrong}"
    assert away.notes[0] == f"the search at {name} brought nothing: {example.away}"
    assert needing.error is not None
    assert needing.error.code == "no_sources"
    assert example.wrong in caplog.text
    assert "wrong-5e9b" not in caplog.text + wrong.model_dump_json() + away.model_dump_json()
