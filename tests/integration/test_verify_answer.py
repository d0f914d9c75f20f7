"""`postback verify-answer`: it judges answers by their sources, and looks for quotes in sources that it reads again."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.codec import read_result, write_result
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Citation, Quote, Result, SourceDetails, Support
from scripts.play.site import Site, questions
from tests.drawn import drawn
from tests.integration.openai_server import judging
from tests.integration.profiled_worker import working
from tests.integration.search_services import (
    answering,
    atom,
    efetch,
    esearch,
    page_of_html,
    paper,
    pubmed_article,
)
from tests.postback_command import environment_of, postback_here

LOOPBACK = {"POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.0/8", "POSTBACK_ENV": "development"}
HALVORSEN = next(one for one in questions() if "Halvorsen" in one.text)


def result_of(url: str, *quotes: str | None) -> Result:
    """A result whose only source is at `url`, with a citation for each quote."""
    citations = [
        Citation(
            start=0,
            end=5,
            source="s",
            support=Support.EXACT if quote else Support.UNSUPPORTED,
            quote=None if quote is None else Quote(exact=quote),
        )
        for quote in quotes
    ]
    return Result(
        job_id="job-1",
        outcome=Outcome.SUCCEEDED,
        text="words",
        sources=["s"],
        source_details=[SourceDetails(id="s", url=url)],
        citations=citations,
        created_at=1,
    )


def verified(content: bytes, folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "result.json").write_bytes(content)
    done = postback_here(
        "verify-answer", str(folder / "result.json"), "--reread", *options, env=environment_of(**{**LOOPBACK, **env})
    )
    # The addresses of services are constants, which only a command of a test takes from variables.
    said = (line for line in done.stderr.splitlines(keepends=True) if "is ignored: no setting" not in line)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, "".join(said))


async def test_quotes_that_their_source_still_has_and_missing_quotes_are_distinguished(tmp_path: Path) -> None:
    async with Site() as site:
        result = result_of(site.url(HALVORSEN.path), HALVORSEN.answer.upper(), "a bridge of cheese", None)
        for content in (write_result(result), event_body(result, "msg_1", "acme")):
            done = await asyncio.to_thread(verified, content, tmp_path, "--json")
            said = json.loads(done.stdout)
            assert [one["standing"] for one in said["citations"]] == ["stands", "gone", "unquoted"]
            assert (done.returncode, done.stderr) == (1, "")
        done = await asyncio.to_thread(verified, write_result(result_of(site.url(HALVORSEN.path), "bridge")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "job-1: 1 stands"


def test_a_source_that_is_away_or_forbidden_is_reported_with_its_reason(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/gone"
        away = verified(write_result(result_of(url, "words")), tmp_path, "--json")
        forbidden = verified(write_result(result_of(url, "words")), tmp_path, "--json", POSTBACK_EGRESS__ALLOW_FETCH="")
    for done, part in ((away, "could not be reached"), (forbidden, "may not be fetched")):
        [citation] = json.loads(done.stdout)["citations"]
        assert (done.returncode, citation["standing"]) == (1, "unread")
        assert part in citation["reason"], citation


def of_documents(**quotes: str) -> bytes:
    """A result whose sources are documents of the job, with a quote of each, by id."""
    ids = [name.replace("_", "=") for name in quotes]
    citations = [
        Citation(start=0, end=5, source=one, support=Support.EXACT, quote=Quote(exact=quote))
        for one, quote in zip(ids, quotes.values(), strict=True)
    ]
    details = [SourceDetails(id=one) for one in ids]
    found = Result(
        job_id="job-1",
        outcome=Outcome.SUCCEEDED,
        text="words",
        sources=ids,
        source_details=details,
        citations=citations,
        created_at=1,
    )
    return write_result(found)


def test_quotes_of_a_jobs_own_documents_are_looked_for_in_the_given_files(tmp_path: Path) -> None:
    content = of_documents(note="The sky is blue", a="two bridges", a_b="1,204 apples", lost="grass")
    files = {"note": tmp_path / "note.txt", "a": tmp_path / "a.html", "a=b": tmp_path / "sheet"}
    files["note"].write_text("Look up: the sky is blue at noon.")
    files["a"].write_text("<html><body><p>The town has <b>three</b> bridges.</p></body></html>")
    files["a=b"].write_text("They sold 1,204 apples.")
    options = [part for name, file in files.items() for part in ("--document", f"{name}={file}")]
    done = verified(content, tmp_path, *options, "--json")
    said = {one["source"]: one for one in json.loads(done.stdout)["citations"]}
    standings = {name: one["standing"] for name, one in said.items()}
    assert standings == {"note": "stands", "a": "gone", "a=b": "stands", "lost": "unread"}
    assert "--document ID=FILE" in said["lost"]["reason"]
    assert (done.returncode, done.stderr) == (1, "")
    done = verified(of_documents(note="The sky is blue"), tmp_path, *options[:2])
    assert done.returncode == 0, done.stdout


def test_a_document_option_without_a_source_or_a_readable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    wrong = {"other=x": "the sources are note", "note": "the sources are note"}
    wrong |= {f"note={tmp_path}/{name}": told for name, told in (("none", "No such file"), ("", "Is a directory"))}
    wrong[f"note={tmp_path}/empty"] = "empty"
    for option, told in wrong.items():
        done = verified(of_documents(note="blue"), tmp_path, "--document", option)
        assert done.returncode == 2
        assert told in done.stderr, option
        assert "Traceback" not in done.stderr


ASPIRIN = "Aspirin lowered the risk of stroke by 12 percent."
SILENT = "http://127.0.0.1:9"


def of_services(**quotes: str) -> bytes:
    """A result whose sources are abstracts of PubMed and arXiv, with a quote of each, by id."""
    ids = [name.replace("_", ":", 1).replace("_", ".") for name in quotes]
    found = read_result(of_documents(**dict.fromkeys(map(str, range(len(ids))), "x")))
    citations = [
        one.model_copy(update={"source": name, "quote": Quote(exact=quote)})
        for one, name, quote in zip(found.citations, ids, quotes.values(), strict=True)
    ]
    details = [SourceDetails(id=one, url=f"{SILENT}/{one}") for one in ids]
    return write_result(found.model_copy(update={"sources": ids, "source_details": details, "citations": citations}))


def services(pubmed: str = SILENT, arxiv: str = SILENT) -> dict[str, str]:
    """The variables that name these services, and forbid every fetch of a page."""
    return {
        "POSTBACK_SEARCH__PUBMED__BASE_URL": pubmed,
        "POSTBACK_SEARCH__ARXIV__BASE_URL": arxiv,
        "POSTBACK_EGRESS__ALLOW_FETCH": "",
    }


async def test_abstracts_are_read_again_from_the_services_that_found_them(tmp_path: Path) -> None:
    gone = pubmed_article("9", "Bleeding", f"<AbstractText>{ASPIRIN}</AbstractText>", kind="D016441")
    articles = efetch(
        pubmed_article("7", "Aspirin", f"<AbstractText>{ASPIRIN}</AbstractText>"),
        pubmed_article("8", "Aspirin", "<AbstractText>Aspirin did not lower any risk.</AbstractText>"),
        gone,
    )
    content = of_services(pmid_7=ASPIRIN, pmid_8=ASPIRIN, pmid_9=ASPIRIN, arxiv_2305_12345="stroke of luck")
    async with (
        answering(articles) as pubmed,
        answering(atom(paper("2305.12345v3", "Luck", "A stroke of luck."))) as arxiv,
    ):
        variables = services(pubmed.url, arxiv.url)
        done = await asyncio.to_thread(verified, content, tmp_path, "--json", **variables)
        said = {one["source"]: one for one in json.loads(done.stdout)["citations"]}
        assert {name: one["standing"] for name, one in said.items()} == {
            "pmid:7": "stands", "pmid:8": "gone", "pmid:9": "unread", "arxiv:2305.12345": "stands",
        }  # fmt: skip
        assert "retracted" in said["pmid:9"]["reason"]
        assert (done.returncode, done.stderr) == (1, "")
        [asked] = pubmed.queries
        assert (asked["db"], asked["id"]) == ("pubmed", "7,8,9")
        assert [query["id_list"] for query in arxiv.queries] == ["2305.12345"]


async def test_no_service_is_asked_for_a_jobs_document_that_has_the_id_of_an_abstract(tmp_path: Path) -> None:
    async with answering(efetch()) as pubmed:
        content = of_documents(**{"pmid:7": ASPIRIN})
        done = await asyncio.to_thread(verified, content, tmp_path, "--json", **services(pubmed.url))
        assert pubmed.asked == []
    [citation] = json.loads(done.stdout)["citations"]
    assert "--document ID=FILE" in citation["reason"]


async def test_a_medical_answer_still_holds_at_the_service_that_its_worker_asked(tmp_path: Path) -> None:
    found = [efetch(pubmed_article("7", "Aspirin", f"<AbstractText>{ASPIRIN}</AbstractText>"))] * 2
    async with answering(esearch("7"), *found) as pubmed, judging(f"{ASPIRIN} [1]") as (engine, _):
        async with working(engine, pubmed=pubmed.url) as worker:
            result = await worker.result({"search": {"provider": "pubmed", "query": "aspirin stroke"}})
        assert [one.source for one in result.citations] == ["pmid:7"]
        done = await asyncio.to_thread(verified, write_result(result), tmp_path, **services(pubmed.url))
    assert done.returncode == 0, done.stdout
    assert ": 1 stands" in done.stdout.splitlines()[0]


async def test_abstracts_of_a_service_that_is_away_are_unread_and_a_given_file_replaces_the_service(
    tmp_path: Path,
) -> None:
    content = of_services(pmid_7=ASPIRIN, arxiv_2305_12345="luck")
    (tmp_path / "luck.txt").write_text("A stroke of luck.")
    async with answering(page_of_html(500)) as pubmed:
        given = f"arxiv:2305.12345={tmp_path / 'luck.txt'}"
        done = await asyncio.to_thread(
            verified, content, tmp_path, "--json", "--document", given, **services(pubmed.url)
        )
    article, luck = json.loads(done.stdout)["citations"]
    assert (article["standing"], article["reason"]) == ("unread", "the search service answered 500")
    assert luck["standing"] == "stands"
    done = await asyncio.to_thread(verified, content, tmp_path, "--json", **services())
    for one in json.loads(done.stdout)["citations"]:
        assert (one["standing"], one["reason"]) == ("unread", "the search service could not be reached")


@settings(max_examples=drawn(8), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.from_regex(r"(?:pmid:|arxiv:)[!-~]{0,20}", fullmatch=True), min_size=1, max_size=4, unique=True)
)
def test_any_id_of_an_abstract_is_read_or_has_a_reason(tmp_path: Path, names: list[str]) -> None:
    result = read_result(of_services(pmid_7=ASPIRIN))
    [citation] = result.citations
    details = [SourceDetails(id=one, url=SILENT) for one in names]
    citations = [citation.model_copy(update={"source": one}) for one in names]
    many = {"sources": names, "source_details": details, "citations": citations}
    done = verified(write_result(result.model_copy(update=many)), tmp_path, "--json", **services())
    assert (done.returncode, done.stderr) == (1, "")
    assert all(one["reason"] for one in json.loads(done.stdout)["citations"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not one JSON object"),
        (b"[" * 5000, "not one JSON object"),
        (b"{}{}", "not one JSON object"),
        (b"[]", ""),
        (b'{"job_id": 7}', "job_id"),
        (b'{"object": "event", "data": null}', ""),
    ],
)
def test_any_other_file_is_refused_with_its_fault(content: bytes, told: str, tmp_path: Path) -> None:
    done = verified(content, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("postback: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_noise_is_refused(tmp_path: Path, content: bytes) -> None:
    done = verified(content, tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# -- judging ---------------------------------------------------------------------------------------------------------
DOSE = "The starting dose is 25 micrograms once a day. Coffee should be avoided for an hour."
SUPPORTED, CONTRADICTED = "The starting dose is 25 µg once daily [1].", "The starting dose is 25 mg once a day [1]."
LINES: dict[str, tuple[dict[str, Any], str]] = {
    "supported": ({"answer": SUPPORTED, "sources": [DOSE]}, "all"),
    "of several": ({"answer": f"{SUPPORTED} Cats purr.", "sources": [DOSE, "Dogs bark."]}, "some"),
    "baseless": ({"answer": "Cats purr at night.", "sources": [DOSE], "profile": "medical"}, "none"),
    "contradicted": ({"answer": f"{SUPPORTED} {CONTRADICTED}", "sources": [DOSE]}, "contradicted"),
    "no claim": ({"answer": "# Dose\n\nThe sources do not say.", "sources": [DOSE]}, "all"),
    "in words": ({"answer": SUPPORTED, "sources": [DOSE], "profile": "finance"}, "all"),
    "no source": ({"answer": SUPPORTED, "sources": []}, "none"),
}


def judging_lines(*lines: object) -> tuple[int, list[dict[str, Any]], str]:
    given = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    done = postback_here("verify-answer", "--json", env=environment_of(**LOOPBACK), given=given)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_lines_of_answers_are_judged_one_by_one_and_the_worst_gives_the_status() -> None:
    status, said, errors = judging_lines(*({"id": name, **line} for name, (line, _) in LINES.items()))
    assert {one["id"]: one["support"] for one in said} == {name: support for name, (_, support) in LINES.items()}
    assert (status, errors) == (4, "")
    (_, wrong) = said[3]["sentences"]
    assert wrong == {
        "start": len(SUPPORTED) + 1,
        "end": len(SUPPORTED) + 1 + len(CONTRADICTED),
        "text": CONTRADICTED,
        "support": "contradicted",
        "missing": ["25 mg"],
    }
    assert all(one["not_checked"] == ["entailment"] for one in said)
    for name, status in (("supported", 0), ("baseless", 3), ("of several", 3), ("no claim", 0)):
        assert judging_lines({"id": 1, **LINES[name][0]})[0] == status, name


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ({"id": "a", "answer": 1, "sources": []}, "answer: not a text"),
        ({"id": "a", "answer": "a", "sources": ["a", 1]}, "sources: not a list of texts"),
        ({"answer": "a", "sources": []}, "id: not a text"),
        ({"id": "a", "answer": "a", "sources": [], "profile": "none"}, "profile: no profile has this name"),
    ],
)
def test_a_bad_line_is_named_and_the_lines_behind_it_are_judged(line: object, told: str) -> None:
    status, said, errors = judging_lines(line, {"id": "b", **LINES["contradicted"][0]})
    assert (status, [one["id"] for one in said]) == (2, ["b"])
    assert f"line 1: {told}" in errors


def test_an_answer_and_its_sources_are_judged_as_files(tmp_path: Path) -> None:
    files = {"answer": SUPPORTED, "wrong": CONTRADICTED, "other": "Dogs bark.", "dose": DOSE}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for answer, sources, status in (("answer", ["dose"], 0), ("answer", ["other", "dose"], 3), ("wrong", ["dose"], 4)):
        options: list[str | Path] = [part for one in sources for part in ("--source", tmp_path / one)]
        done = postback_here("verify-answer", "--answer", tmp_path / answer, *options, env=environment_of())
        assert done.returncode == status, done.stdout
    refused: tuple[list[str | Path], ...] = (
        [],
        ["--answer", tmp_path / "answer"],
        ["--answer", tmp_path / "none", "--source", tmp_path / "dose"],
    )
    for wrong in refused:
        assert postback_here("verify-answer", *wrong, env=environment_of()).returncode == 2


async def test_a_result_is_judged_by_the_present_text_of_its_sources(tmp_path: Path) -> None:
    """The numbers of an answer's marks are found again, although a result names only the sources that it used."""
    async with Site() as site:
        url = site.url(HALVORSEN.path)
        for text, status in ((f"{HALVORSEN.answer} [2].", 0), ("Whales sing in warm seas [2].", 3)):
            mark = Citation(start=0, end=len(text), source="s", support=Support.LEXICAL)
            result = result_of(url).model_copy(update={"text": text, "citations": [mark]})
            (tmp_path / "result.json").write_bytes(write_result(result))
            done = await asyncio.to_thread(
                postback_here, "verify-answer", tmp_path / "result.json", "--json", env=environment_of(**LOOPBACK)
            )
            assert (done.returncode, json.loads(done.stdout)["unread"]) == (status, {}), done.stdout
    done = await asyncio.to_thread(
        postback_here, "verify-answer", tmp_path / "result.json", "--json", env=environment_of(**LOOPBACK)
    )
    assert (done.returncode, [*json.loads(done.stdout)["unread"]]) == (1, ["s"]), done.stdout
