"""Sources of `kind = "http_json"`: a credit bureau and a knowledge graph, with the files of the how-to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.inside.bureau_server import BANKS_KEY, INSURERS_KEY, PERSON, CreditBureau, bureau
from tests.integration.inside.page import asking, written
from tests.integration.inside.sparql_server import LEI, TOKEN, SparqlEndpoint, sparql
from tests.integration.openai_server import judging
from tests.integration.profiled_worker import working
from workers.egress import EgressPolicy

BUREAU, GRAPH = "https://api.bureau.example", "https://graph.bank.example/sparql"
QUESTION = "How well does the person pay the loan?"
REPORT = {"provider": "bureau", "query": QUESTION, "parameters": {"person": PERSON}}
WHO = "Who owns Halvorsen Steel?"
RELATIONS = {"provider": "graph", "query": WHO, "parameters": {"lei": LEI}}


def bureau_file(folder: Path, url: str, key: str = BANKS_KEY) -> Path:
    return written(folder, "bureau", {BUREAU: url}, key=key, insurers_key=INSURERS_KEY)


def graph_file(folder: Path, url: str, token: str = TOKEN) -> Path:
    return written(folder, "graph", {GRAPH: f"{url}/sparql"}, graph_token=token)


async def test_a_report_of_a_credit_bureau_is_the_source_of_an_answer(tmp_path: Path) -> None:
    said = "Vesla Bank's car loan has two instalments overdue [2]."
    async with bureau() as server, judging(said) as (engine, asked):
        inside = bureau_file(tmp_path, server.url)
        async with working(engine, inside=inside, guard=EgressPolicy()) as worker:
            result = await worker.result({"search": REPORT}, QUESTION, "bank")
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
        assert TOKEN not in result.model_dump_json()


async def test_a_query_to_the_graph_has_the_jobs_limit(tmp_path: Path) -> None:
    async with sparql() as server, asking(graph_file(tmp_path, server.url)) as graph:
        assert len(await graph.found({**RELATIONS, "limit": 1}, "bank")) == 1
        assert len(await graph.found({**RELATIONS, "limit": 2}, "bank")) == 2
        assert server.asked[0].endswith(" LIMIT 1")


@pytest.mark.parametrize("lei", [f'{LEI}" }} #', f'" . ?s ?p "{LEI}', LEI[1:], f"{LEI}\\", LEI.lower()])
async def test_a_jobs_parameter_cannot_change_the_query_to_the_graph(tmp_path: Path, lei: str) -> None:
    async with sparql() as server, asking(graph_file(tmp_path, server.url)) as graph:
        why = await graph.failure({**RELATIONS, "parameters": {"lei": lei}}, "bank")
        assert why == "the parameter lei has another form than the source takes"
        assert server.asked == []


@dataclass(frozen=True)
class Example:
    """One of the page's files, its server, and a search of it."""

    server: Callable[[], AbstractAsyncContextManager[CreditBureau | SparqlEndpoint]]
    file: Callable[[Path, str, str], Path]
    search: dict[str, Any]


EXAMPLES = {"bureau": Example(bureau, bureau_file, REPORT), "graph": Example(sparql, graph_file, RELATIONS)}


@pytest.mark.parametrize("name", EXAMPLES)
async def test_a_job_ends_with_a_named_reason_if_the_secret_is_wrong_or_the_server_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    example = EXAMPLES[name]
    async with example.server() as server:
        inside = example.file(tmp_path, server.url, "wrong-5e9b")
        async with working(inside=inside) as worker:
            wrong = await worker.result({"search": example.search}, QUESTION, "bank")
        assert server.asked == []
    async with working(inside=inside) as worker:
        away = await worker.result({"search": example.search}, QUESTION, "bank")
        needing = await worker.result({"search": example.search, "required": True}, QUESTION, "bank")
    assert (wrong.outcome, away.outcome, needing.outcome) == ("succeeded", "succeeded", "failed")
    assert wrong.notes[0] == f"the search at {name} brought nothing: the source refuses the operator's secret"
    assert away.notes[0] == f"the search at {name} brought nothing: the search service could not be reached"
    assert needing.error is not None
    assert needing.error.code == "no_sources"
    assert "wrong-5e9b" not in caplog.text + wrong.model_dump_json() + away.model_dump_json()
