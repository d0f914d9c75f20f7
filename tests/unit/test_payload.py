"""A job's question by reference: its URL, its document, and the job that both make."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from unittest.mock import patch

import jsonschema
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from producers.sharding import prefix_key
from schemas import payload as payloads
from schemas.codec import InvalidJob, write_job
from schemas.job import Job
from schemas.kinds import ASKED
from schemas.payload import MAX_VALUES, PAYLOAD_FIELDS, UnusablePayload, with_payload
from schemas.strict import NotAJob, job_in
from scripts.publish.wire_schemas import FOLDER
from tests.drawn import drawn
from tests.unit.codec_jobs import encoded, read
from workers.inference.tenants import PAYLOAD_TOKENS, prompt_tokens

ADDRESS = "https://files.example/question.json?signature=s3cret"
RECORD: dict[str, Any] = {"payload_url": ADDRESS, "callback_url": "https://consumer.example/hook", "max_tokens": 7}
SECRET = "Grünspan"
DIGEST = hashlib.sha256(b"{}").hexdigest()
SCHEMA = jsonschema.Draft202012Validator(json.loads((FOLDER / "job.json").read_text()))

TOOL = {"type": "function", "function": {"name": "clock"}}
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(min_size=1, max_size=9),
    "messages": st.lists(st.builds(lambda text: {"role": "user", "content": text}, st.text(max_size=9)), min_size=1),
    "embed": st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3),
    "rerank": st.just({"query": "a", "documents": ["b", "c"]}),
    "score": st.just({"queries": ["a"], "documents": ["b", "c"]}),
    "classify": st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3),
    "tools": st.just([TOOL]),
    "sources": st.just({"urls": ["https://a.example/"], "documents": [{"id": "a", "text": "One."}]}),
    "response_format": st.just({"type": "json_object"}),
}
REST = st.fixed_dictionaries(
    {},
    optional={
        "raw": st.booleans(),
        "n": st.integers(1, 3),
        "stop": st.just(["x"]),
        "dimensions": st.integers(1, 9),
        "metadata": st.just({"a": "b"}),
        "temperature": st.none() | st.just(0.5),
    },
)
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just(SECRET),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(st.sampled_from([*Job.model_fields, "role", "content", "urls"]) | st.text(max_size=5), some)
    ),
    max_leaves=12,
)


def job(**fields: Any) -> Job:
    return Job.model_validate({**RECORD, **fields})


def refusal(document: object, **fields: Any) -> str:
    written = document if isinstance(document, bytes) else encoded(document)
    with pytest.raises(UnusablePayload) as raised:
        with_payload(job(**fields), written)
    return str(raised.value)


@pytest.mark.parametrize(
    "url",
    [ADDRESS, "http://files.example:8080/a", "s3://uploads/acme/q 1?.json", "s3://a.b-c/%2e%2e/ä", "HTTPS://a.example"],
)
def test_a_payloads_url_is_taken_and_written_as_it_is(url: str) -> None:
    found = read({"payload_url": url, "payload_sha256": DIGEST}).job
    assert (found.payload_url, found.payload_sha256) == (url, DIGEST)
    assert read(write_job(found)).job == found == job_in(write_job(found))


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://files.example/q", "file:///etc/passwd", "https://user:passwd@files.example/", "gs://uploads/q", "", 7),
        *("s3://", "s3://ab/passwd", "s3://Uploads/passwd", "s3://uploads", "s3://uploads/", "s3://uploads/a\nb"),
        "https://files.example/" + "a" * 2048,
    ],
)
def test_any_other_url_is_refused_by_its_field_and_never_repeated(url: object) -> None:
    with pytest.raises(InvalidJob) as raised:
        read({"payload_url": url})
    [problem] = map(str, raised.value.problems)
    assert problem.startswith("payload_url: ") and "passwd" not in problem
    assert not SCHEMA.is_valid({"payload_url": url})


@given(
    st.dictionaries(
        st.sampled_from(["payload_url", "payload_sha256", "prompt", "embed", "dimensions", "raw", "n"]),
        NOISE | st.sampled_from([ADDRESS, DIGEST, "s3://uploads/a", ["a"], 1]),
        min_size=1,
    )
)
@example({"payload_sha256": DIGEST, "prompt": "a"})
@example({"payload_url": ADDRESS, "prompt": "a"})
@example({"payload_url": ADDRESS, "embed": ["a"]})
@example({"payload_url": ADDRESS, "payload_sha256": DIGEST[1:]})
@example({"payload_url": ADDRESS, "payload_sha256": None, "dimensions": 3})
def test_the_published_schema_and_the_reader_agree_on_any_reference(document: dict[str, Any]) -> None:
    # Python tests the schema's `$` here, and in Python `$` also matches before a line break at the end.
    assume(not any(isinstance(value, str) and "\n" in value for value in document.values()))
    try:
        found = read(document).job
    except InvalidJob:
        is_read = False
    else:
        is_read = True
        assert (found.payload_url is None) != all(getattr(found, name) is None for name in ASKED)
    assert SCHEMA.is_valid(document) == is_read


@settings(max_examples=drawn(200))
@given(st.data(), REST)
def test_a_job_is_the_same_whichever_of_its_fields_are_in_the_document(data: st.DataObject, rest: Any) -> None:
    asked = data.draw(st.sampled_from(ASKED))
    others = data.draw(st.sets(st.sampled_from([name for name in FIELDS if name not in ASKED])))
    fields = {name: data.draw(FIELDS[name]) for name in (asked, *others)}
    in_document = {asked, *data.draw(st.sets(st.sampled_from(sorted(others)) if others else st.nothing()))}
    if "tools" in fields:
        fields["tool_choice"] = "auto"
        in_document |= {"tool_choice"} if "tools" in in_document else set()
    document = encoded({name: value for name, value in fields.items() if name in in_document})
    record = {**rest, **{name: value for name, value in fields.items() if name not in in_document}}
    try:
        whole = Job.model_validate({**fields, **rest, "callback_url": RECORD["callback_url"], "max_tokens": 7})
    except ValueError:
        whole = None
    try:
        found = with_payload(job(**record), document)
    except ValueError:  # the error is UnusablePayload, or a validation error if the record's own fields break a rule
        assert whole is None
    else:
        assert found.job == whole and found.job.model_fields_set == whole.model_fields_set
        assert found.unknown is None


@settings(max_examples=drawn(300))
@given(NOISE | st.dictionaries(st.sampled_from([*PAYLOAD_FIELDS, "payload_url"]), NOISE, min_size=1))
@example({"payload_url": ADDRESS})
@example({"prompt": "\ud800"})
@example({"messages": [{"role": "user", "content": [{"type": "text", "text": SECRET, "x": 1}]}], "x": 1})
def test_any_document_makes_a_job_or_is_refused_in_words_that_repeat_nothing_of_it(document: object) -> None:
    try:
        found = with_payload(job(), encoded(document))
    except UnusablePayload as unusable:
        assert SECRET not in str(unusable) and len(str(unusable)) < 4000
    else:
        assert found.job.payload_url is None and found.job.callback_url == RECORD["callback_url"]
        assert found.job.max_tokens == 7
        assert read(write_job(found.job)).job == found.job


@given(st.binary(max_size=40))
@example(b'{"prompt": "a"')
@example(b"\xff\xfe")
@example(b"[" * 40_000)
@example(b'{"tools":' * 1000)
def test_bytes_that_are_no_job_are_refused(payload: bytes) -> None:
    with pytest.raises(UnusablePayload):
        with_payload(job(), payload)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"payload_url": ADDRESS}, "it has `payload_url`, and a document cannot name another one"),
        (
            {"prompt": "a", "callback_url": ADDRESS, "model_id": "b"},
            "it has `model_id`, `callback_url`; move this into",
        ),
        ({"prompt": "a", "sources": {"urls": []}}, "it has `sources`, and so has the record; send this once"),
        ({"embed": ["a"]}, "with the record's fields it has these problems: sources: `sources` goes with `prompt` or"),
        ({"messages": [{"role": "user"}]}, "it has these problems: messages.0"),
        ({}, "it has these problems: prompt: exactly one of `prompt`"),
        ([], "it has these problems: value: is not a JSON object"),
        (b"{", "it has these problems: value: is not JSON: EOF"),
    ],
)
def test_a_document_that_cannot_be_used_is_refused_with_its_fault_and_the_fix(document: object, reason: str) -> None:
    assert refusal(document, sources={"profile": "medical"}).startswith(reason)


def test_a_document_with_another_digest_is_refused() -> None:
    payload = encoded({"prompt": "a"})
    digest = hashlib.sha256(payload).hexdigest()
    for spelled in (digest, digest.upper()):
        assert with_payload(job(payload_sha256=spelled), payload).job.prompt == "a"
    assert refusal(payload + b" ", payload_sha256=digest).startswith("its SHA-256 is not `payload_sha256`; send")


def test_the_unknown_fields_of_a_document_are_ignored_by_name() -> None:
    found = with_payload(job(), encoded({"prompt": "a", "tool": 1, "sources": {"url": "x"}}))
    assert found.unknown is not None and found.unknown.names == ("tool", "sources.url")


def count(document: object) -> int:
    """The values of a document: members of objects and items of lists, at all levels."""
    if not isinstance(document, list | dict):
        return 0
    values = list(document.values()) if isinstance(document, dict) else document
    return len(values) + sum(map(count, values))


@given(NOISE, st.integers(0, 12), st.booleans())
def test_no_document_with_more_values_than_the_bound_is_parsed(document: object, most: int, is_ascii: bool) -> None:
    assume(count(document) > most)
    payload = json.dumps(document, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    with patch.object(payloads, "MAX_VALUES", most), pytest.raises(UnusablePayload, match=f"more than {most} values"):
        with_payload(job(), payload)


@given(st.text(st.sampled_from('",[{\\\n:]}a'), min_size=1, max_size=40))
def test_the_text_of_a_string_counts_as_one_value(text: str) -> None:
    with patch.object(payloads, "MAX_VALUES", 4):
        assert with_payload(job(), encoded({"prompt": text, "sources": {"urls": []}})).job.prompt == text


def test_a_long_conversation_is_accepted_and_a_flood_of_values_is_refused() -> None:
    turn = {"role": "user", "content": "a, [b], {c}"}
    found = with_payload(job(), encoded({"messages": [turn] * (MAX_VALUES // 4)}))
    assert len(found.job.messages or ()) == MAX_VALUES // 4
    for flood in (b"[]", b"{}", b'""', b'"\\""', b"1"):
        payload = b'{"prompt": "a", "x": [' + b",".join([flood] * (MAX_VALUES + 1)) + b"]}"
        assert refusal(payload) == f"it has more than {MAX_VALUES} values; send fewer or longer texts"


def test_jobs_with_one_document_go_to_one_place_even_if_its_url_is_signed_again() -> None:
    first, second = ({**RECORD, "payload_url": f"https://files.example/q?signature={one}"} for one in "ab")
    other, named = {**RECORD, "payload_url": "s3://uploads/q"}, {**first, "payload_sha256": DIGEST}
    keys = [prefix_key(encoded(each)) for each in (first, second, other, named)]
    assert None not in keys and keys[0] == keys[1] and len({*keys}) == 3
    assert prefix_key(encoded({**other, "payload_sha256": DIGEST.upper()})) == keys[3]


def test_a_waiting_payload_costs_as_much_as_the_largest_record_until_it_is_answered() -> None:
    assert prompt_tokens(encoded(RECORD)) == prompt_tokens(write_job(job())) == PAYLOAD_TOKENS
    assert prompt_tokens(encoded({"prompt": '"payload_url": "https://a.example/"'})) < 100


def test_the_hash_of_the_question_is_the_documents_or_its_urls() -> None:
    assert job(payload_sha256=DIGEST.upper()).prompt_sha256 == DIGEST
    assert job().prompt_sha256 == hashlib.sha256(ADDRESS.encode()).hexdigest()


def test_the_gateway_takes_a_reference_and_refuses_a_misspelt_one() -> None:
    assert job_in(encoded(RECORD)).payload_url == ADDRESS
    with pytest.raises(NotAJob) as raised:
        job_in(encoded({"prompt": "a", "payload_uri": ADDRESS}))
    assert [str(problem) for problem in raised.value.problems] == [
        "payload_uri: is unknown; did you mean `payload_url`?"
    ]
