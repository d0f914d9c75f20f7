"""`postback verify-answer`: it reads the sources again, and looks for the cited words in them."""

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

from devkit.site import Site, questions
from schemas.codec import write_result
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Citation, Quote, Result, SourceDetails, Support
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
    return postback_here(
        "verify-answer", str(folder / "result.json"), *options, env=environment_of(**{**LOOPBACK, **env})
    )


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
