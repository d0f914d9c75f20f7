"""Sources of `kind = "http_json"`: a FHIR server, with the files of docs/howto/inside-sources.md."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from devkit.pdf_files import line, pdf
from tests.integration.inside.fhir_server import TOKEN, fhir, letter, observation
from tests.integration.inside.page import Asking, asking, job_of_the_page, written
from tests.integration.openai_server import judging
from tests.integration.profiled_worker import working
from tests.integration.search_services import Reply, answering, in_json, page_of_html
from workers.egress import EgressPolicy

HOST = "https://fhir.clinic.example"
RECORDS = (
    observation("o1", "p1", "Creatinine", 71.5, "umol/L", "2024-03-05T08:00:00Z"),
    observation("o2", "p1", "Creatinine", 140.0, "umol/L", "2025-06-01T08:00:00Z"),
    observation("o3", "p1", "Sodium", 141.0, "mmol/L", "2025-06-01T08:00:00Z"),
    observation("o4", "p2", "Creatinine", 99.0, "umol/L", "2025-06-02T08:00:00Z"),
)
SEARCH = job_of_the_page()["sources"]["search"]
QUESTION = "What is the creatinine?"
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


def plain(folder: Path, url: str, more: str = "", page: str = "page") -> AbstractAsyncContextManager[Asking]:
    """Searches of one source at this address."""
    (folder / "labs.toml").write_text(PLAIN.format(url=url, more=more, page=page))
    return asking(folder)


async def test_a_patients_values_are_sources_of_an_answer_with_date_and_id(tmp_path: Path) -> None:
    async with fhir(*RECORDS, most=1) as server, judging("Creatinine 140.0 umol/L [1]") as (engine, asked):
        inside = written(tmp_path, "labs", {HOST: server.url}, token=TOKEN)
        async with working(engine, inside=inside, guard=EgressPolicy()) as worker:
            result = await worker.result({"search": SEARCH}, job_of_the_page()["prompt"], tenant="clinic")
        assert (result.outcome, result.notes) == ("succeeded", [])
        assert result.sources == ["labs:Observation/o2"]
        [cited] = result.source_details
        assert (cited.title, cited.published, cited.url) == ("Creatinine", "2025-06-01", None)
        assert "71.5 umol/L" in asked[0]["messages"][0]["content"]
        assert [request.query.get("_offset") for request in server.asked] == [None, "1"]
        assert TOKEN not in result.model_dump_json()


async def test_documents_are_read_by_their_media_type(tmp_path: Path) -> None:
    said = pdf([line("The biopsy of the kidney shows nephritis.")])
    letters = (
        letter("d1", "p1", "Biopsy", "2025-01-02T00:00:00Z", "application/pdf", said),
        letter("d2", "p1", "Visit", "2025-02-02T00:00:00Z", "text/html", b"<p>The kidney is <b>swollen</b>.</p>"),
    )
    async with fhir(*letters) as server, judging("The biopsy shows nephritis. The kidney is swollen.") as (engine, _):
        inside = written(tmp_path, "letters", {HOST: server.url}, token=TOKEN)
        async with working(engine, inside=inside) as worker:
            search = {**SEARCH, "provider": "letters"}
            result = await worker.result({"search": search}, "What does the biopsy of the kidney show?", "clinic")
    assert result.sources == ["letters:DocumentReference/d1", "letters:DocumentReference/d2"]


async def test_a_job_ends_with_a_named_reason_if_the_secret_is_wrong_or_the_server_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fhir(*RECORDS) as server:
        inside = written(tmp_path, "labs", {HOST: server.url}, token="wrong-5e9b")
        async with working(inside=inside) as worker:
            wrong = await worker.result({"search": SEARCH}, QUESTION, "clinic")
    async with working(inside=inside) as worker:
        away = await worker.result({"search": SEARCH}, QUESTION, "clinic")
        needing = await worker.result({"search": SEARCH, "required": True}, QUESTION, "clinic")
    assert (wrong.outcome, away.outcome, needing.outcome) == ("succeeded", "succeeded", "failed")
    assert wrong.notes[0] == "the search at labs brought nothing: the source refuses the operator's secret"
    assert away.notes[0] == "the search at labs brought nothing: the search service could not be reached"
    assert needing.error is not None
    assert needing.error.code == "no_sources"
    assert "refuses the operator's secret" in caplog.text
    assert "wrong-5e9b" not in caplog.text + wrong.model_dump_json() + away.model_dump_json()


async def test_a_changed_secret_is_used_at_once(tmp_path: Path) -> None:
    async with (
        fhir(*RECORDS) as server,
        asking(written(tmp_path, "labs", {HOST: server.url}, token="wrong-5e9b")) as labs,
    ):
        assert "refuses" in await labs.failure(SEARCH)
        (tmp_path / "clinic.token").write_text(TOKEN)
        assert len(await labs.found(SEARCH)) == 2
        (tmp_path / "clinic.token").unlink()
        assert await labs.failure({**SEARCH, "query": "sodium"}) == "the operator's secret cannot be read"


async def test_to_another_tenant_the_source_does_not_exist(tmp_path: Path) -> None:
    async with fhir(*RECORDS) as server, asking(written(tmp_path, "labs", {HOST: server.url}, token=TOKEN)) as labs:
        unknown = await labs.failure({**SEARCH, "provider": "nosuch"})
        assert await labs.failure(SEARCH, "elsewhere") == unknown
        await labs.found(SEARCH)
        assert await labs.failure(SEARCH, "elsewhere") == unknown
        assert len(server.asked) == 1


async def test_results_are_cached_separately_for_each_tenant(tmp_path: Path) -> None:
    async with answering(CREATININE) as service, plain(tmp_path, service.url) as labs:
        for tenant in ("a", "a", "b"):
            await labs.found(PLAIN_SEARCH, tenant)
        assert len(service.asked) == 2


async def test_a_file_states_how_long_its_results_are_fresh(tmp_path: Path) -> None:
    async with answering(CREATININE) as service, plain(tmp_path, service.url, "fresh_seconds = 0") as labs:
        assert await labs.found(PLAIN_SEARCH) == await labs.found(PLAIN_SEARCH)
        assert len(service.asked) == 2


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({}, "the source takes these parameters: patient"),
        ({"patient": "p1", "ward": "3"}, "the source takes these parameters: patient"),
        ({"patient": "p1&_count=9"}, "the parameter patient has another form than the source takes"),
        ({"patient": "p1\n"}, "the parameter patient has another form than the source takes"),
    ],
)
async def test_a_job_gives_the_parameters_that_the_file_names(
    tmp_path: Path, parameters: dict[str, str], why: str
) -> None:
    async with fhir(*RECORDS) as server, asking(written(tmp_path, "labs", {HOST: server.url}, token=TOKEN)) as labs:
        assert await labs.failure({**SEARCH, "parameters": parameters}) == why
        assert server.asked == []


async def test_a_provider_of_the_web_takes_no_parameters(tmp_path: Path) -> None:
    async with asking(tmp_path) as labs:
        why = await labs.failure({"provider": "pubmed", "query": "x", "parameters": {"patient": "p1"}})
        assert why == "this search provider takes no parameters"


async def test_a_query_is_one_value_of_the_url_whatever_it_holds(tmp_path: Path) -> None:
    async with answering(CREATININE) as service, plain(tmp_path, service.url) as labs:
        await labs.found({**PLAIN_SEARCH, "query": "a&b=c#d/../é {page} %41"})
        assert service.queries == [{"q": "a&b=c#d/../é {page} %41", "p": "1"}]
        text = (tmp_path / "labs.toml").read_text().replace("/find?q={query}", "/{words}/x?").replace("&p=", "p=")
        (tmp_path / "labs.toml").write_text(text)
        async with asking(tmp_path) as dots:
            assert "no word" in await dots.failure({**PLAIN_SEARCH, "query": ".."})


async def test_pages_are_read_until_there_are_enough_results(tmp_path: Path) -> None:
    pages = [in_json({"items": [{"id": page, "text": f"Creatinine number {page}."}]}) for page in range(5)]
    async with answering(*pages) as service, plain(tmp_path, service.url, "pages = 9") as labs:
        found = await labs.found({**PLAIN_SEARCH, "limit": 3})
        assert [query["p"] for query in service.queries] == ["1", "2", "3"]
        assert [one.id for one in found] == ["labs:0", "labs:1", "labs:2"]


async def test_a_cursor_of_the_answer_leads_to_the_next_page(tmp_path: Path) -> None:
    pages = [in_json({"items": [{"text": str(at)}], "next": cursor}) for at, cursor in enumerate(["a&b", ""])]
    more = 'pages = 9\nnext = "next"'
    async with answering(*pages) as service, plain(tmp_path, service.url, more, page="cursor") as labs:
        assert [one.text for one in await labs.found(PLAIN_SEARCH)] == ["0", "1"]
        assert [query["p"] for query in service.queries] == ["", "a&b"]


async def test_a_next_page_on_another_server_gets_no_secret(tmp_path: Path) -> None:
    async with answering(CREATININE) as other:
        here = in_json({"items": [{"text": "Creatinine."}], "next": f"{other.url}/more"})
        async with answering(here) as service, plain(tmp_path, service.url, 'pages = 9\nnext = "next"') as labs:
            assert await labs.failure(PLAIN_SEARCH) == "the source's next page is on another server"
        assert other.asked == []


async def test_a_body_is_posted_with_values_instead_of_whole_placeholder_strings(tmp_path: Path) -> None:
    body = 'method = "POST"\nbody = { query = { match = "{query}" }, size = "{limit}", text = "{ x }" }'
    async with answering(CREATININE) as service, plain(tmp_path, service.url, body) as labs:
        await labs.found({**PLAIN_SEARCH, "query": 'a "b" {limit}', "limit": 7})
        assert service.bodies == [{"query": {"match": 'a "b" {limit}'}, "size": 7, "text": "{ x }"}]


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
