"""Kinds of jobs: without a question, and with images."""

from __future__ import annotations

import asyncio
import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli.take.answers import in_words
from postback_client import Result as ClientResult
from postback_client.shapes import parsed
from postback_client.shapes import read as read_shape
from schemas.codec import InvalidJob, Origin, ReceivedJob, read_job, read_result, write_job, write_result
from schemas.images import DATA_URL, IMAGE_TOKENS, MAX_IMAGES, data_url, media_type_of, parted_data_url
from schemas.job import MAX_JOB_BYTES, OF_A_QUESTION, Job, Message
from schemas.kind_bodies import EMBEDDINGS, ENDPOINTS
from schemas.kinds import EMBED, KINDS, MAX_COMPARED, QUESTIONS
from schemas.openai import CHAT_COMPLETIONS, RESPONSES, URLS, is_batch_line
from schemas.openai_answers import output_line
from schemas.result import Result
from schemas.screening import ScreeningFinding
from schemas.strict import NotAJob, body_job, job_in, job_of
from scripts.publish.job_examples import KIND_JOBS, KIND_RESULTS
from scripts.publish.wire_schemas import FOLDER
from telemetry.metrics import Metrics
from tests.any_json import any_json
from tests.asking import request_of
from tests.drawn import drawn
from tests.images import GIF, JPEG, PNG, WEBP, asked_of, image_part
from tests.unit.echo_worker import record, working
from workers.engines.address import with_quirks
from workers.engines.base import GenerationRequest, RequestRejected, require_question
from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.families import families
from workers.engines.pooling import Pooled, PoolingInput
from workers.enrichment.choosing.rank import room_for_sources
from workers.inference.results import answer_of
from workers.inference.tenants import prompt_tokens
from workers.screening.rules import RegexRule
from workers.screening.texts import rewritten, texts_of

# -- kinds of job ----------------------------------------------------------------------------------------------------
FEWER = settings(max_examples=drawn(60))
PLACE = Origin("topic-uuid", 3, 7)
SCHEMA = jsonschema.Draft202012Validator(json.loads((FOLDER / "job.json").read_text()))
TEXTS = st.text(min_size=1, max_size=4)
NOISE = any_json(
    scalars=st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    leaves=4,
)
BY_FIELD = {endpoint.kind.field: endpoint for endpoint in ENDPOINTS.values()}
LISTED = st.lists(TEXTS, min_size=1, max_size=3)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "embed": LISTED,
    "rerank": st.fixed_dictionaries({"query": TEXTS, "documents": LISTED}, optional={"top_n": st.integers(1, 9)}),
    "score": LISTED.flatmap(
        lambda documents: st.fixed_dictionaries(
            {
                "queries": st.lists(TEXTS, min_size=1, max_size=1) | st.permutations(documents),
                "documents": st.just(documents),
            }
        )
    ),
    "classify": LISTED,
}
"""Valid values of each kind's field."""
JOBS = st.one_of([st.fixed_dictionaries({field: value}) for field, value in FIELDS.items()])
MEMBERS = st.sampled_from(["query", "queries", "documents", "top_n", "text"])
NOISY_JOBS = st.dictionaries(
    st.sampled_from([*QUESTIONS, "dimensions", "raw", "stop"]),
    st.lists(TEXTS | NOISE, max_size=4) | st.dictionaries(MEMBERS, LISTED | TEXTS | NOISE, max_size=4) | NOISE,
    min_size=1,
    max_size=3,
)


def received(document: object) -> ReceivedJob:
    return read_job(document if isinstance(document, bytes) else json.dumps(document).encode(), [], PLACE, 0)


def read(document: object) -> Job:
    return received(document).job


def line(field: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": "row-1", "method": "POST", "url": BY_FIELD[field].url, "body": body}


def texts(value: object) -> Iterator[str]:
    """Every text in a value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


def test_every_table_has_a_row_for_each_kind() -> None:
    fields = [kind.field for kind in KINDS]
    assert [*BY_FIELD] == [*KIND_JOBS] == [*KIND_RESULTS] == [*FIELDS] == fields
    assert {*URLS} >= {*ENDPOINTS}
    assert {"prompt", "messages", "payload_url", *fields} == {*QUESTIONS}
    assert {*fields} <= {*RegexRule.model_fields["fields"].default}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"embed": []}, "embed"),
        ({"embed": [""]}, "embed.0"),
        ({"embed": ["a"] * 65}, "embed"),
        ({"embed": ["a"], "dimensions": 0}, "dimensions"),
        (
            {"embed": ["a"], "prompt": "b"},
            "exactly one of `prompt`, `messages`, `embed`, `rerank`, `score`, `classify` and",
        ),
        ({"prompt": "a", "dimensions": 8}, "`dimensions` goes with `embed`"),
        ({"classify": ["a"], "dimensions": 8}, "`dimensions` goes with `embed`"),
        ({"classify": ["a"] * 257}, "classify"),
        ({"rerank": {"query": "a"}}, "rerank.documents"),
        ({"rerank": {"query": "", "documents": ["b"]}}, "rerank.query"),
        ({"rerank": {"query": "a", "documents": []}}, "rerank.documents"),
        ({"rerank": {"query": "a", "documents": ["b"] * 1001}}, "rerank.documents"),
        ({"rerank": {"query": "a", "documents": ["b"], "top_n": 0}}, "rerank.top_n"),
        ({"score": {"queries": ["a", "b"], "documents": ["c"]}}, "score: `queries` has neither one query nor one for"),
        ({"score": {"queries": [], "documents": ["c"]}}, "score.queries"),
        ({"rerank": {"query": "a", "documents": ["b"]}, "score": {"queries": ["a"], "documents": ["b"]}}, "exactly"),
    ],
)
def test_a_job_without_a_question_has_texts_within_bounds(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJob, match=problem):
        read(fields)
    with pytest.raises(NotAJob):
        job_of(fields)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "option",
    [{"sources": {"urls": ["https://a.example"]}}, {"stop": ["x"]}, {"raw": True}, {"response_format": {}}],
    ids=lambda option: next(iter(option)),
)
def test_a_field_that_changes_an_answer_s_text_is_refused_by_name(field: str, option: dict[str, Any]) -> None:
    [name] = option
    with pytest.raises(InvalidJob, match=f"`{name}` goes with `prompt`.* and not with `{field}`"):
        read({**KIND_JOBS[field], **option})
    assert {"sources", "response_format", "reasoning", "stop"} <= {*OF_A_QUESTION}


@given(JOBS | NOISY_JOBS)
@FEWER
def test_the_published_schema_and_the_reader_agree_about_any_job(document: dict[str, Any]) -> None:
    try:
        read(document)
        readable = True
    except InvalidJob:
        readable = False
    # The schema does not compare the lengths of the lists `queries` and `documents`.
    if isinstance(asked := document.get("score"), dict) and SCHEMA.is_valid(document):
        readable = readable or len(asked["queries"]) not in (1, len(asked["documents"]))
    assert SCHEMA.is_valid(document) is readable


@given(JOBS)
@FEWER
def test_any_texts_survive_the_record_and_the_filter_reads_and_redacts_each(fields: dict[str, Any]) -> None:
    job = read(write_job(Job.model_validate(fields)))
    assert job == Job.model_validate(fields)
    found = texts_of(job)
    [(field, asked)] = fields.items()
    assert sorted(each.text for each in found) == sorted(texts(asked))
    assert {each.field for each in found} == {field}
    for each in found:
        changed = texts_of(rewritten(job, {each: "[redacted:card]"}.get))
        assert changed == [replace(other, text="[redacted:card]") if other == each else other for other in found]
    ScreeningFinding.model_validate({"rule": "r", "kind": "words", "verdict": "flag", "field": field, "count": 1})


@given(JOBS, JOBS)
@FEWER
def test_the_hash_of_the_texts_is_equal_for_equal_texts_only(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (Job.model_validate(each) for each in (one, other))
    fields = [getattr(each, each.kind.field) for each in (first, second) if each.kind is not None]
    assert (first.prompt_sha256 == second.prompt_sha256) == (fields[0] == fields[1])


def test_a_misspelt_member_is_named_with_the_right_one() -> None:
    asked = {"rerank": {"query": "a", "documents": ["b"], "top_m": 1}}
    with pytest.raises(NotAJob, match=r"rerank\.top_m: is unknown; did you mean `rerank\.top_n`"):
        job_of(asked)
    assert "rerank.top_m" in str(received(asked).unknown)


def test_the_largest_job_fits_into_a_record() -> None:
    asked = {"score": {"queries": ["a" * 200] * MAX_COMPARED, "documents": ["b" * 300] * MAX_COMPARED}}
    assert len(write_job(read(asked))) < MAX_JOB_BYTES


# -- endpoints ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "body", "fields"),
    [
        ("embed", {"input": "a", "dimensions": 4}, {"embed": ["a"], "dimensions": 4}),
        ("rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}, None),
        ("rerank", {"query": "a", "documents": ["b", "c"], "top_n": 0, "return_documents": False}, None),
        ("score", {"queries": "a", "documents": "b"}, {"score": {"queries": ["a"], "documents": ["b"]}}),
        ("score", {"text_1": "a", "text_2": ["b", "c"]}, {"score": {"queries": ["a"], "documents": ["b", "c"]}}),
        ("classify", {"input": ["a", "b"]}, {"classify": ["a", "b"]}),
    ],
)
def test_bodies_of_openai_vllm_jina_and_cohere_are_jobs(
    field: str, body: dict[str, Any], fields: dict[str, Any] | None
) -> None:
    if fields is None:
        fields = {"rerank": {"query": "a", "documents": ["b", "c"], "top_n": body["top_n"] or None}}
    job = body_job(BY_FIELD[field].url, {"model": "m", **body})
    assert job == read(line(field, **body)).model_copy(update={"custom_id": None, "model_id": "m"})
    assert job == Job.model_validate({"model_id": "m", **fields})


@pytest.mark.parametrize(
    ("field", "body", "problem"),
    [
        ("embed", {"input": [1, 2]}, "input: is required"),
        ("embed", {"input": ["a", ""]}, "input.1: "),
        ("embed", {"input": "a", "encoding_format": "base64"}, "encoding_format: .*float"),
        ("rerank", {"documents": ["a"]}, "query: "),
        ("rerank", {"query": "a", "documents": ["b", {"text": "c", "title": "d"}]}, r"documents\.1: "),
        ("rerank", {"query": "a", "documents": ["b"], "return_documents": True}, "return_documents: .*index"),
        ("rerank", {"query": "a", "documents": ["b"], "top_k": 3}, "top_k: is unknown; did you mean `top_n`"),
        ("rerank", {"query": "a", "documents": ["b"], "sources": {"urls": []}}, "`sources` goes with"),
        ("score", {"queries": ["a", "b"], "documents": ["c"]}, "`queries` has neither one"),
        ("score", {"text_1": ["a"], "text_2": [""]}, r"text_2\.0: "),
        ("score", {"query": "a", "documents": ["b"]}, "query: is unknown; did you mean `queries`"),
        ("classify", {"input": ["a"] * 257}, "input: "),
        ("classify", {"texts": ["a"]}, "texts: is unknown; did you mean `input`"),
    ],
)
def test_a_body_that_is_no_job_is_refused_with_its_own_name_of_the_field(
    field: str, body: dict[str, Any], problem: str
) -> None:
    with pytest.raises(NotAJob, match=problem):
        body_job(BY_FIELD[field].url, body)


@FEWER
@given(st.sampled_from([*FIELDS]), st.dictionaries(MEMBERS | st.sampled_from(["input", "text_1"]), NOISE | LISTED))
def test_any_body_is_a_job_or_names_its_members(field: str, body: dict[str, Any]) -> None:
    try:
        assert body_job(BY_FIELD[field].url, body).kind == BY_FIELD[field].kind
    except NotAJob as refused:
        members = {*BY_FIELD[field].members, *body, "body"}
        assert {problem.field.split(".")[0] for problem in refused.problems} <= members


@given(JOBS)
@FEWER
def test_a_job_with_the_members_of_a_batch_line_is_no_line(fields: dict[str, Any]) -> None:
    assert not is_batch_line({**fields, "body": {}, "url": EMBEDDINGS})


async def test_a_worker_answers_a_line_of_each_endpoint_in_its_own_form() -> None:
    """The echo engine's score of a document is the share of the query's words that occur in the document."""
    query, documents = "a river", ["the house", "a river", "a house"]
    async with working() as worker:
        embedded = await worker.result(record(line("embed", input=["one", "two", "one"], dimensions=4)))
        ranked = await worker.result(record(line("rerank", query=query, documents=documents, top_n=2)))
        scored = await worker.result(record(line("score", queries=query, documents=documents)))
        labelled = await worker.result(record(line("classify", input=documents)))
    for result in (embedded, ranked, scored, labelled):
        assert (result.outcome, result.text, result.confidence) == ("succeeded", None, None)
        assert read_result(write_result(result)) == result
    answers = {
        field: output_line(result, BY_FIELD[field].url)["response"]["body"]
        for field, result in zip(FIELDS, (embedded, ranked, scored, labelled), strict=True)
    }
    first, second, third = (each["embedding"] for each in answers["embed"]["data"])
    assert (first == third != second, {len(first), len(second)}) == (True, {4})
    assert answers["embed"]["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [(each["index"], each["relevance_score"]) for each in answers["rerank"]["results"]] == [(1, 1.0), (2, 0.5)]
    assert [each["score"] for each in answers["score"]["data"]] == [0.0, 1.0, 0.5]
    assert [each["index"] for each in answers["classify"]["data"]] == [0, 1, 2]
    for each in answers["classify"]["data"]:
        assert each["label"] == f"LABEL_{each['probs'].index(max(each['probs']))}"
        assert (math.isclose(sum(each["probs"]), 1), each["num_classes"]) == (True, 2)


async def test_the_echo_engine_sleeps_before_it_answers_texts_and_an_abort_ends_the_sleep() -> None:
    engine = EchoEngine(EchoSettings(), Metrics())
    asked = PoolingInput.of(Job(classify=["[[sleep 3600]] a", "b"]))
    request = GenerationRequest("r1", {"max_tokens": 512}, pooling=asked)
    answering = asyncio.create_task(engine.generate(request))
    while not engine.load().running:
        await asyncio.sleep(0.01)
    request.abort.ask()
    assert (await answering).finish_reason == "abort"


# -- results -----------------------------------------------------------------------------------------------------------
@given(st.lists(st.sampled_from([0.0, 0.25, -1.0, 3e38]), min_size=1, max_size=9), st.integers(1, 9))
def test_ranks_are_the_best_documents_and_equal_ones_keep_their_order(scores: list[float], top_n: int) -> None:
    job = Job.model_validate({"rerank": {"query": "a", "documents": ["b"] * len(scores), "top_n": top_n}})
    ranks: Any = answer_of(job, Pooled(tuple((score,) for score in scores)))["ranks"]
    in_order = sorted(enumerate(scores), key=lambda each: (-each[1], each[0]))
    assert [(rank["index"], rank["score"]) for rank in ranks] == in_order[:top_n]


@pytest.mark.parametrize("field", FIELDS)
def test_a_result_of_each_kind_is_shown_and_read_by_the_client_library(field: str) -> None:
    result = Result.model_validate(KIND_RESULTS[field])
    shown = in_words(result)
    read_by_client = read_shape(ClientResult, parsed(write_result(result)))
    kind = BY_FIELD[field].kind
    assert len(getattr(read_by_client, kind.answer)) == len(getattr(result, kind.answer)) == 2
    assert shown is not None
    assert len(shown.splitlines()) == (1 if kind is EMBED else 2)


@pytest.mark.parametrize("field", FIELDS)
def test_a_stored_result_with_an_empty_answer_is_shown(field: str) -> None:
    stored = parsed(write_result(Result.model_validate({**KIND_RESULTS[field], BY_FIELD[field].kind.answer: []})))
    assert len((in_words(Result.model_validate(stored)) or "").splitlines()) <= 1


@pytest.mark.parametrize("field", FIELDS)
def test_an_engine_that_only_generates_text_refuses_the_field(field: str) -> None:
    asked = PoolingInput.of(Job.model_validate(KIND_JOBS[field]))
    with pytest.raises(RequestRejected, match=f"{field}: this engine gives no {BY_FIELD[field].kind.answer}"):
        require_question(GenerationRequest("r1", {"max_tokens": 512}, pooling=asked))


# -- image parts -----------------------------------------------------------------------------------------------------
IMAGES = {"image/png": PNG, "image/jpeg": JPEG, "image/gif": GIF, "image/webp": WEBP}
ADDRESS = "https://pictures.example/cat.png"
IMAGE_NOISE = any_json(
    st.sampled_from(["type", "text", "image_url", "url", "detail"]) | st.text(max_size=5),
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(["image_url", "text", ADDRESS]),
)


def chat(*parts: object, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(parts)}]}


def problems(job: object) -> list[str]:
    with pytest.raises(InvalidJob) as raised:
        received(job)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(("media_type", "image"), IMAGES.items())
def test_an_image_of_each_format_is_recognised_by_its_first_bytes_and_taken(media_type: str, image: bytes) -> None:
    assert media_type_of(image) == media_type
    url = data_url(media_type, image)
    job = received(chat({"type": "text", "text": "Describe the image."}, image_part(url))).job
    assert [(place, each.url) for place, each in job.images] == [("messages.0.content.1", url)]
    assert parted_data_url(url) == (media_type, b64encode(image).decode())
    assert received(write_job(job)).job == job


@given(st.from_regex(DATA_URL, fullmatch=True))
def test_each_data_url_of_the_pattern_is_a_jobs_image_of_the_type_that_it_states(url: str) -> None:
    (_, image), *others = received(chat(image_part(url))).job.images
    media_type, text = parted_data_url(image.url)
    assert others == []
    assert media_type_of(b64decode(text, validate=True)) == media_type


@given(st.binary(max_size=64), st.sampled_from(sorted(IMAGES)))
@example(PNG, "image/jpeg")
def test_a_data_url_is_taken_exactly_if_its_bytes_are_of_the_type(image: bytes, media_type: str) -> None:
    """For PNG, the schema's pattern needs a ninth byte after the eight that show the format; every real PNG has it."""
    is_image = media_type_of(image) == media_type and len(image) > 8
    is_taken = re.search(DATA_URL, data_url(media_type, image)) is not None
    assert is_taken == is_image or len(image) <= 12


@pytest.mark.parametrize(
    "url",
    [
        "ftp://pictures.example/cat.png",
        "https://user:secret@pictures.example/cat.png",
        "https://pictures.example/" + "a" * 2048,
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        data_url("image/jpeg", PNG),
        data_url("image/svg+xml", b"<svg/>"),
        data_url("image/png", PNG)[:-1],
        "data:text/html,<script>",
        "",
        7,
    ],
)
def test_any_other_url_is_refused_by_its_field_and_never_repeated(url: object) -> None:
    [problem] = problems(chat(image_part(url)))
    assert problem.startswith("messages.0.content.0.image_url.url: ")
    assert "secret" not in problem and "passwd" not in problem


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([{"type": "input_audio"}], "messages.0.content.0.type: only `text` and `image_url` parts are taken"),
        (["text"], "messages.0.content.0.type: only `text` and `image_url`"),
        ([{"type": "image_url"}], "messages.0.content.0.image_url: Field required"),
        ([{"type": "image_url", "image_url": ADDRESS}], "messages.0.content.0.image_url: "),
        ([image_part(ADDRESS, detail="much")], "messages.0.content.0.image_url.detail: Input should be 'auto'"),
        ([image_part(ADDRESS)] * (MAX_IMAGES + 1), "messages: `messages` has more than 16 images"),
    ],
)
def test_a_part_that_is_no_image_part_is_refused_by_its_field(parts: list[object], found: str) -> None:
    assert problems(chat(*parts))[0].startswith(found)


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_only_a_users_message_has_images(role: str) -> None:
    assert problems(chat(image_part(ADDRESS), role=role))[0].startswith("messages.0: `image_url` parts go with")


@given(IMAGE_NOISE)
@example([image_part(ADDRESS)])
@example([{"type": ["text"]}])
def test_any_content_gives_a_job_or_a_refusal_in_a_record_and_at_the_gateway(content: object) -> None:
    job = {"messages": [{"role": "user", "content": content}]}
    try:
        received(job)
    except InvalidJob as invalid:
        assert invalid.problems
        with pytest.raises(NotAJob):
            job_in(json.dumps(job).encode())
    for url, body in (
        (CHAT_COMPLETIONS, job),
        (RESPONSES, {"input": [{"role": "user", "content": content}]}),
    ):
        try:
            body_job(url, body)
        except NotAJob as refused:
            assert refused.problems


@given(IMAGE_NOISE, st.sampled_from(["user", "system", "assistant", "tool"]))
def test_the_published_schema_takes_the_same_contents_as_the_reader(content: object, role: str) -> None:
    message = {"role": role, "content": content, **({"tool_call_id": "a"} if role == "tool" else {})}
    schema = Job.model_json_schema()
    try:
        Message.model_validate_json(json.dumps(message), strict=True)
    except ValueError:
        is_message = False
    else:
        is_message = True
    described = {**schema["$defs"]["Message"], "$defs": schema["$defs"]}
    assert jsonschema.Draft202012Validator(described).is_valid(message) == is_message


# -- other shapes ------------------------------------------------------------------------------------------------------
def test_a_chat_and_a_request_to_responses_have_their_images() -> None:
    shown = data_url("image/png", PNG)
    chatted = body_job(CHAT_COMPLETIONS, chat(image_part(ADDRESS, detail="low"), image_part(shown)))
    parts = [
        {"type": "input_text", "text": "Describe the image."},
        {"type": "input_image", "image_url": ADDRESS, "detail": "high"},
        {"type": "input_image", "image_url": shown},
    ]
    responded = body_job(RESPONSES, {"input": [{"role": "user", "content": parts}]})
    assert [(each.url, each.detail) for _, each in chatted.images] == [(ADDRESS, "low"), (shown, None)]
    assert [(each.url, each.detail) for _, each in responded.images] == [(ADDRESS, "high"), (shown, None)]
    assert responded.images[0][0] == "messages.0.content.1"


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "input_image"}, "input.0.content.0.image_url"),
        ({"type": "input_image", "image_url": "ftp://a"}, "input.0.content.0.image_url"),
        ({"type": "input_image", "image_url": ADDRESS, "detail": "much"}, "input.0.content.0.detail"),
        ({"type": "input_image", "file_id": "file-1"}, "input.0.content.0.file_id"),
        ({"type": "input_file", "file_id": "file-1"}, "input.0.content.0"),
    ],
)
def test_a_malformed_image_of_a_response_is_refused_by_its_own_place(part: object, place: str) -> None:
    with pytest.raises(NotAJob) as refused:
        body_job(RESPONSES, {"input": [{"role": "user", "content": [part]}]})
    assert refused.value.problems[0].field == place


def test_a_line_of_a_batch_has_its_image() -> None:
    line = {"custom_id": "1", "method": "POST", "url": CHAT_COMPLETIONS, "body": chat(image_part(ADDRESS))}
    assert [each.url for _, each in received(line).job.images] == [ADDRESS]


def test_the_gateway_names_a_members_unknown_fields_and_a_worker_drops_them() -> None:
    part = image_part(ADDRESS, size=3) | {"alt": "a cat"}
    with pytest.raises(NotAJob) as refused:
        job_in(json.dumps(chat(part)).encode())
    assert [problem.field for problem in refused.value.problems] == [
        "messages.0.content.0.alt",
        "messages.0.content.0.image_url.size",
    ]
    assert json.loads(write_job(received(chat(part)).job)) == chat(image_part(ADDRESS))


# -- readers of texts --------------------------------------------------------------------------------------------------
def test_the_input_filter_reads_only_the_texts_and_keeps_the_images_in_their_places() -> None:
    job = Job.model_validate(chat({"type": "text", "text": "a"}, image_part(ADDRESS), {"type": "text", "text": "b"}))
    [text] = texts_of(job)
    assert (text.text, text.parts) == ("a\nb", ("a", "b"))
    changed = rewritten(job, lambda _: ("A", "B"))
    said = [part.model_dump(exclude_none=True) for part in (changed.messages or [])[0].parts]
    assert said == [{"type": "text", "text": "A"}, image_part(ADDRESS), {"type": "text", "text": "B"}]


def test_a_family_without_system_messages_keeps_the_images_of_the_first_question() -> None:
    request = request_of(messages=[{"role": "system", "content": "Be brief."}, *asked_of(ADDRESS).messages])
    [message] = with_quirks(request, families()["gemma-2"]).messages
    text, *parts = asked_of(ADDRESS).messages[0]["content"]
    assert message["content"] == [{"type": "text", "text": "Be brief."}, text, *parts]


def test_the_hash_of_a_question_covers_its_images_and_that_of_a_chat_without_images_stays() -> None:
    hashes = [Job.model_validate(chat(image_part(f"{ADDRESS}?{number}"))).prompt_sha256 for number in (1, 2)]
    assert len({*hashes}) == 2
    texts = [Job.model_validate({"messages": [{"role": "user", "content": said}]}) for said in ("a", [text_part("a")])]
    assert texts[0].prompt_sha256 == texts[1].prompt_sha256


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_an_image_costs_the_same_whether_the_job_carries_or_names_it(separators: tuple[str, str]) -> None:
    large = data_url("image/png", PNG + b"\xff" * 300_000)
    for url in (large, ADDRESS):
        value = json.dumps(chat(image_part(url), text_part("Why?")), separators=separators).encode()
        assert prompt_tokens(value) == pytest.approx(IMAGE_TOKENS, abs=60)
        assert prompt_tokens(value.replace(b"/", b"\\/")) == pytest.approx(IMAGE_TOKENS, abs=60)
    line = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": large}]}]}
    assert prompt_tokens(json.dumps(line, separators=separators).encode()) == pytest.approx(IMAGE_TOKENS, abs=60)


@given(st.text(max_size=200))
@example('"url":"data:image/png;base64,iVBORw0KGgoAAAA"')
def test_a_text_cannot_lower_its_cost_by_looking_like_an_image(text: str) -> None:
    value = json.dumps({"messages": [{"role": "user", "content": text + '"image_url"'}]}).encode()
    assert prompt_tokens(value) >= len(value) / 4


def test_images_leave_less_room_for_sources() -> None:
    job = Job.model_validate(chat(text_part("Why?"), image_part(ADDRESS)))
    bare = Job.model_validate(chat(text_part("Why?")))
    rooms = [room_for_sources(each, context_tokens=8000) or 0 for each in (bare, job)]
    assert rooms[0] - rooms[1] == IMAGE_TOKENS


@given(st.lists(st.text(max_size=5), min_size=1, max_size=MAX_IMAGES))
def test_the_text_of_a_message_consists_of_its_text_parts(texts: list[str]) -> None:
    parts = [part for text in texts for part in (text_part(text), image_part(ADDRESS))]
    message = Message.model_validate({"role": "user", "content": parts})
    assert (message.text, len(message.images)) == ("\n".join(texts), len(texts))
