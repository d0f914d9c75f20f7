"""Sources of `kind = "mcp"`: the file of docs/howto/inside-sources.md on a server of the official SDK."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.inside.mcp_server import TOKEN, mcp_server
from tests.integration.inside.page import asking, written
from tests.integration.openai_server import judging
from tests.integration.profiled_worker import working
from tests.integration.raw_server import saying, speaking

MIB = 1024 * 1024
HOST = "https://notes.clinic.example"
TOOL = 'tool = "search_notes"\narguments = { text = "{query}", most = "{limit}" }'
QUESTION = "Does the patient want dialysis?"
SEARCH = {"provider": "notes", "query": "dialysis", "limit": 2}


BLOCKS = ["The patient asked for dialysis.", "The patient refuses dialysis."]


async def test_blocks_of_a_tools_answer_are_sources(tmp_path: Path) -> None:
    async with mcp_server() as url, judging(" ".join(BLOCKS)) as (engine, _):
        inside = written(tmp_path, "notes", {HOST: url}, token=TOKEN)
        async with working(engine, inside=inside) as worker:
            result = await worker.result({"search": SEARCH}, QUESTION, "clinic")
    assert result.outcome == "succeeded"
    assert result.sources[1:] == ["notes:note://7"]
    assert result.sources[0].startswith("notes:")
    assert TOKEN not in result.model_dump_json()


async def test_a_server_without_sessions_answers_too(tmp_path: Path) -> None:
    async with mcp_server(stateless=True) as url, asking(written(tmp_path, "notes", {HOST: url}, token=TOKEN)) as notes:
        assert [one.text for one in await notes.found(SEARCH)] == [BLOCKS[0], None]


async def test_a_structured_answer_is_read_like_json(tmp_path: Path) -> None:
    read = (
        'tool = "list_notes"\narguments.text = "{query}"\nread.items = "notes"\nread.id = "number"\n'
        'read.text = "note"\nread.date = "day"'
    )
    async with (
        mcp_server() as url,
        asking(written(tmp_path, "notes", {HOST: url, TOOL: read}, token=TOKEN)) as notes,
    ):
        [one] = await notes.found(SEARCH)
    assert (one.id, one.text, one.particulars.published) == ("notes:3", "Dialysis was begun: dialysis", "2025-04-01")


@pytest.mark.parametrize(
    ("token", "tool", "why"),
    [
        ("wrong-1b2c", TOOL, "the source refuses the operator's secret"),
        (TOKEN, 'tool = "broken"', "the MCP server's tool reports an error"),
        (TOKEN, 'tool = "nosuch"', "the MCP server's tool reports an error"),
        (TOKEN, f'{TOOL}\nread.text = "note"', "the MCP server's tool answers with other content than JSON"),
    ],
)
async def test_a_job_ends_with_a_named_reason_and_without_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str, tool: str, why: str
) -> None:
    async with (
        mcp_server() as url,
        working(inside=written(tmp_path, "notes", {HOST: url, TOOL: tool}, token=token)) as worker,
    ):
        result = await worker.result({"search": SEARCH}, QUESTION, "clinic")
    assert result.outcome == "succeeded"
    assert result.notes[0] == f"the search at notes brought nothing: {why}"
    assert token not in caplog.text + result.model_dump_json()


async def test_a_job_ends_while_the_server_is_away(tmp_path: Path) -> None:
    async with mcp_server() as url:
        inside = written(tmp_path, "notes", {HOST: url}, token=TOKEN)
    async with working(inside=inside) as worker:
        result = await worker.result({"search": SEARCH}, QUESTION, "clinic")
    assert result.outcome == "succeeded"
    assert result.notes[0] == "the search at notes brought nothing: the MCP server could not be reached"


@pytest.mark.parametrize("answer", [b"{}", b"[1]", b'{"jsonrpc": "2.0"'])
async def test_an_answer_that_is_no_mcp_ends_the_search_with_a_reason(tmp_path: Path, answer: bytes) -> None:
    async with (
        speaking(saying(answer, "Content-Type: application/json")) as url,
        asking(written(tmp_path, "notes", {HOST: url}, token=TOKEN)) as notes,
    ):
        assert await notes.failure(SEARCH) == "the MCP server's answer broke off or is not MCP"


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
        asking(written(tmp_path, "notes", {HOST: url}, token=TOKEN)) as notes,
    ):
        assert await notes.failure(SEARCH) == "the MCP server's answer broke off or is not MCP"
    assert sent < 32 * MIB
