"""The pages of the console with hostile texts: every query is answered, and every text is escaped."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser
from sqlalchemy import Connection, insert

from gateway.page.marked import pieces
from gateway.page.rendering import duration, web_address
from gateway.store.tables import jobs
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Citation, Result, SourceDetails, Support, Timings, Usage
from tests.drawn import drawn
from tests.unit.console_browser import Browser, console_rig, signed_in
from tests.unit.console_rows import EVIL, NOW_MS, job_row
from tests.unit.gateway_rig import Rig

PATHS = [
    *("/console", "/console/batches", "/console/batch", "/console/jobs", "/console/job", "/console/callbacks"),
    *("/console/endpoints", "/console/file", "/console/sign-in", "/console/nothing"),
]
QUICK = settings(max_examples=drawn(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(), max_size=30) | st.just(EVIL)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with console_rig(tmp_path_factory.mktemp("console")) as made:
        yield made


@QUICK
@given(
    st.sampled_from(PATHS),
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "id",
                    "after",
                    "limit",
                    "status",
                    "created_after",
                    "metadata",
                    "model",
                    "batch",
                    "order",
                    "next",
                    "done",
                    "reason",
                ]
            )
            | TEXTS,
            TEXTS,
        ),
        max_size=5,
    ),
)
@example("/console/jobs", [("metadata", '"=x')])
@example("/console/jobs", [("created_after", "9" * 11)])
@example("/console/batches", [("after", "batch_zz"), ("limit", "100")])
def test_any_query_is_answered(rig: Rig, path: str, said: list[tuple[str, str]]) -> None:
    browser = signed_in_once(rig)
    query = urlencode([(name, value) for name, value in said], errors="surrogatepass").replace("%00", "")
    answer = browser.get(f"{path}?{query}")
    assert answer.status_code < 500
    assert EVIL not in answer.text
    assert "<img src=x" not in answer.text


def signed_in_once(rig: Rig) -> Browser:
    """The browser that all examples of a property share."""
    if rig.folder not in _SIGNED_IN:
        _SIGNED_IN[rig.folder] = signed_in(rig, "noisy")
    return _SIGNED_IN[rig.folder]


_SIGNED_IN: dict[object, Browser] = {}


@QUICK
@given(TEXTS, TEXTS, TEXTS, st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=2), st.data())
def test_any_job_is_shown_with_its_texts_escaped(
    rig: Rig, job_id: str, text: str, name: str, metadata: dict[str, str], data: st.DataObject
) -> None:
    browser = signed_in_once(rig)
    citation = st.builds(
        Citation, start=st.integers(0, 40), end=st.integers(0, 40), source=TEXTS, support=st.sampled_from(Support)
    )
    result = Result(
        job_id=job_id,
        outcome=data.draw(st.sampled_from(Outcome)),
        text=text,
        sources=[name, EVIL],
        source_details=[SourceDetails(id=name, url=f"https://{name}/", title=text)],
        citations=data.draw(st.lists(citation, max_size=4)),
        notes=[name],
        usage=Usage(completion_tokens=3),
        timings=Timings(infer_ms=1e9),
        metadata=metadata,
        created_at=0,
    )
    identifier = f"any-{quote(job_id.encode('utf-8', 'replace'))}"[:200] + data.draw(
        st.sampled_from(["", "/..", "?a#b", "%"])
    )
    row = job_row("noisy", identifier, status=str(result.outcome), finished_at=NOW_MS, custom_id=name)

    def change(connection: Connection) -> None:
        connection.execute(jobs.delete().where(jobs.c.tenant == "noisy"))
        connection.execute(insert(jobs).values({**row, "metadata": metadata, "result": encoded(result)}))

    rig.store.write_now(change)
    listed = browser.page("/console/jobs")
    address = listed.css_first("td a").attributes["href"] or ""  # type: ignore[union-attr]
    answer = browser.get(address)
    assert answer.status_code == 200
    page = LexborHTMLParser(answer.text)
    for tag in ("script", "img", "style", "iframe", "object", "base"):
        assert len(page.css(tag)) == {"script": 2, "img": 1}.get(tag, 0)
    for node in page.css("main a"):
        assert (node.attributes["href"] or "").startswith(("https://", "http://", "/console", "#source-"))
    assert not any(name.startswith("on") or name == "style" for node in page.css("*") for name in node.attributes)


def encoded(result: Result) -> bytes:
    """The result's record; UTF-8 has no lone surrogates, so a result with one becomes a failed result."""
    clean = result.model_dump_json().encode("utf-8", "replace") if _is_encodable(result) else b""
    return clean or write_result(Result(job_id="x", outcome=Outcome.FAILED, created_at=0))


def _is_encodable(result: Result) -> bool:
    try:
        result.model_dump_json()
    except ValueError:
        return False
    return True


@given(
    st.text(max_size=40),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.sampled_from(Support)), max_size=8),
)
def test_the_pieces_of_an_answer_are_its_text_whatever_its_citations_name(
    text: str, places: list[tuple[int, int, Support]]
) -> None:
    citations = [Citation(start=start, end=end, source="s", support=support) for start, end, support in places]
    result = Result(job_id="j", outcome=Outcome.SUCCEEDED, text=text, sources=["s"], citations=citations, created_at=0)
    found = list(pieces(result))
    assert "".join(piece.text for piece in found) == text
    assert all(piece.text for piece in found)
    cited = [each for each in citations if each.start < min(each.end, len(text))]
    assert sum(len(piece.references) for piece in found) == len(cited)
    place = 0
    for piece in found:
        covering = [each.support for each in cited if each.start <= place < each.end]
        weakest = max(covering, key=list(Support).index, default=None)
        assert piece.support == weakest
        place += len(piece.text)


@pytest.mark.parametrize(
    "text",
    ["javascript:alert(1)", "data:text/html,x", "//evil", "ftp://a", "https://", "http://[", " https://a", None, ""],
)
def test_a_text_that_is_no_web_address_is_no_link(text: str | None) -> None:
    assert web_address(text) is None


@given(st.text())
def test_a_link_leads_to_the_web_only(text: str) -> None:
    assert web_address(text) is None or text.lower().startswith(("http://", "https://"))


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [(0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (61_000, "1 min 1 s"), (7_260_000, "2 h 1 min")],
)
def test_a_duration_has_the_unit_that_suits_it(milliseconds: float, said: str) -> None:
    assert duration(milliseconds) == said
