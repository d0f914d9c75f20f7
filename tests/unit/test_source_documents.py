"""Documents that a job carries: any value gives a job or a named problem, as the published schema says."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.codec import InvalidJob, Origin, read_job
from schemas.job import MAX_DOCUMENTS, Job
from schemas.publish import FOLDER
from schemas.strict import NotAJob, job_in, job_of
from workers.enrichment.evidence import Unreadable
from workers.enrichment.reading.extract import extract

WRITTEN = (FOLDER / "job.json").read_text(encoding="utf-8")
PUBLISHED = json.loads(WRITTEN)
DOCUMENT = PUBLISHED["$defs"]["SourceDocument"]["properties"]
SCHEMA = jsonschema.Draft202012Validator(json.loads(WRITTEN.replace('$"', '\\\\Z"')))
"""In Python, `$` also matches before a line break at the end; in ECMA 262, which JSON Schema uses, `$` does not."""


def pattern(name: str) -> str:
    (found,) = [kind["pattern"] for kind in DOCUMENT[name].get("anyOf", [DOCUMENT[name]]) if "pattern" in kind]
    return str(found)


NOISE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers())
BYTES = st.from_regex(pattern("base64"), fullmatch=True)
TYPES = st.sampled_from(["", "text/html", "application/pdf", "application/json", "TEXT/PLAIN", "image/png"])
DOCUMENTS = st.fixed_dictionaries(
    {"id": st.from_regex(pattern("id"), fullmatch=True) | NOISE},
    optional={
        "title": st.text(max_size=9) | NOISE,
        "text": st.text(max_size=9) | NOISE,
        "base64": BYTES | st.binary(max_size=9).map(bytes.hex) | NOISE,
        "media_type": st.from_regex(pattern("media_type"), fullmatch=True) | TYPES | NOISE,
    },
)


@given(st.lists(DOCUMENTS | NOISE, max_size=3) | NOISE)
@example([{"id": "a", "text": "b", "base64": "YWJj"}])
@example([{"id": "a"}])
@example([{"id": "a", "base64": "YWJj\n"}])
@example([{"id": "a", "text": "b"}] * (MAX_DOCUMENTS + 1))
def test_any_value_of_documents_is_read_as_the_published_schema_says(documents: Any) -> None:
    job = {"prompt": "Why?", "sources": {"documents": documents}}
    if isinstance(documents, list) and any(isinstance(one, float) for one in documents):
        return  # NaN is no JSON
    written = json.dumps(job).encode()
    try:
        sources = read_job(written, None, Origin("topic", 0, 0), 0).job.sources
    except InvalidJob as invalid:
        assert not SCHEMA.is_valid(json.loads(written))
        assert all(problem.field.startswith("sources.documents") for problem in invalid.problems)
        return
    assert SCHEMA.is_valid(json.loads(written))
    for document in sources.documents if sources is not None else ():
        b64decode(document.base64 or "", validate=True)


@given(BYTES | st.binary(max_size=40).map(lambda noise: noise.hex().ljust(80, "0")), TYPES)
def test_a_reader_understands_or_refuses_any_bytes_of_any_type(written: str, media_type: str) -> None:
    try:
        extracted = extract(b64decode(written), media_type.lower(), None)
    except Unreadable as reason:
        assert str(reason)
    else:
        assert extracted.text


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"id": "a b", "text": "x"}, "sources.documents.0.id: has a space or a character outside printable ASCII"),
        ({"id": "a", "base64": "YWJ"}, "sources.documents.0.base64: "),
        ({"id": "a", "base64": "YW-_"}, "sources.documents.0.base64: is not base64 with padding"),
        ({"id": "a", "text": "x", "media_type": "pdf"}, "sources.documents.0.media_type: is not a media type"),
        ({"id": "a"}, "sources.documents.0: exactly one of `text` and `base64` is required"),
        ({"id": "a", "text": "x", "base64": "YWJj"}, "sources.documents.0: exactly one of `text` and `base64`"),
    ],
)
def test_a_wrong_document_is_named_by_its_field(document: dict[str, str], problem: str) -> None:
    with pytest.raises(NotAJob) as raised:
        job_of({"prompt": "Why?", "sources": {"documents": [document]}})
    assert str(raised.value).startswith(problem)


def test_a_misspelt_member_of_a_document_is_named_with_its_fix() -> None:
    document = {"id": "a", "text": "x", "media_typ": "text/html"}
    job = {"prompt": "Why?", "sources": {"documents": [document]}}
    with pytest.raises(NotAJob, match=r"media_typ: is unknown; did you mean `sources.documents.media_type`"):
        job_in(json.dumps(job).encode())
    received = read_job(json.dumps(job).encode(), None, Origin("topic", 0, 0), 0)
    assert received.unknown is not None
    assert received.unknown.names == ("sources.documents.media_typ",)


def test_a_line_of_a_batch_carries_documents() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "Why?"}],
        "sources": {"documents": [{"id": "letter", "text": "Because."}]},
    }
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    read: Job = job_of(line)
    assert read.sources is not None
    assert [(one.id, one.text) for one in read.sources.documents] == [("letter", "Because.")]
