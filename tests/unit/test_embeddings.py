"""Jobs for embeddings: their fields, a Batch line, the engine's request, a server's answer, and the result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import InvalidJob, Origin, read_job, read_result, write_job
from schemas.job import Job
from schemas.openai import EMBEDDINGS
from schemas.openai_answers import output_line
from schemas.strict import NotAJob, body_job
from screening.texts import texts_of, with_texts
from tests.unit.echo_worker import record, working
from workers.engines.base import EngineError, EngineFailed, GenerationRequest, RequestRejected
from workers.engines.online.turns import parted
from workers.engines.openai_http.answers import TryAgain, outcome
from workers.engines.openai_http.dialect import Dialect
from workers.engines.openai_http.settings import OpenAISettings

PLACE = Origin("topic-uuid", 3, 7)
ASKED = GenerationRequest("r1", None, None, 512, None, embed=("one", "two"), dimensions=3)
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def job(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def line(**body: Any) -> dict[str, Any]:
    return {"custom_id": "row-1", "method": "POST", "url": EMBEDDINGS, "body": {"model": "e5", **body}}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"embed": []}, "embed"),
        ({"embed": [""]}, "embed.0"),
        ({"embed": ["a"] * 65}, "embed"),
        ({"embed": ["a"], "prompt": "b"}, "exactly one of"),
        ({"embed": ["a"], "dimensions": 0}, "dimensions"),
        ({"prompt": "a", "dimensions": 8}, "`dimensions` goes with `embed`"),
        ({"embed": ["a"], "raw": True}, "`raw` goes with"),
        ({"embed": ["a"], "sources": {"urls": ["https://a.example"]}}, "`sources` goes with"),
        ({"embed": ["a"], "stop": ["x"]}, "`stop` goes with"),
    ],
)
def test_a_job_for_embeddings_has_texts_and_nothing_of_a_question(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidJob, match=problem):
        read_job(job(**fields), [], PLACE, 0)


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=64))
def test_texts_of_any_characters_survive_the_record_and_the_filter_reads_each(texts: list[str]) -> None:
    given_job = Job(embed=texts)
    read = read_job(write_job(given_job), [], PLACE, 0).job
    assert read.embed == texts
    assert [text.text for text in texts_of(read)] == texts
    assert with_texts(read, {("embed", 0): "[redacted:card]"}).embed == ["[redacted:card]", *texts[1:]]


@given(NOISE)
def test_any_input_of_an_embeddings_body_is_a_job_or_names_the_input(texts: object) -> None:
    try:
        assert body_job(EMBEDDINGS, {"model": "e5", "input": texts}).embed in (texts, [texts])
    except NotAJob as refused:
        assert {problem.field.split(".")[0] for problem in refused.problems} <= {"input", "body"}


def test_a_line_s_tokens_and_a_binary_encoding_are_refused_by_name() -> None:
    for body, problem in ((line(input=[1, 2]), "body.input"), (line(input="a", encoding_format="base64"), "float")):
        with pytest.raises(InvalidJob, match=problem):
            read_job(json.dumps(body).encode(), [], PLACE, 0)


async def test_a_worker_answers_a_line_with_embeddings_in_openai_s_form() -> None:
    async with working() as worker:
        body = line(input=["one", "two", "one"], dimensions=4)
        del body["body"]["model"]
        result = await worker.result(record(body))
    assert (result.outcome, result.text, result.confidence) == ("succeeded", None, None)
    answer = output_line(result, EMBEDDINGS)["response"]["body"]
    first, second, third = (each["embedding"] for each in answer["data"])
    assert first == third != second
    assert {len(first), len(second)} == {4}
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert read_result(result.model_dump_json().encode()).embeddings == [first, second, third]


# -- the server --------------------------------------------------------------------------------------------------------


def answered(document: object, status: int = 200) -> Any:
    return outcome(ASKED, "embeddings", status, {}, json.dumps(document).encode(), 0.0, is_usual=False)


def vector(index: int, *numbers: float) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": numbers}


def test_the_server_is_asked_for_numbers_and_its_embeddings_are_put_into_the_texts_order() -> None:
    dialect = Dialect("e5", OpenAISettings())
    assert (dialect.path(ASKED), dialect.body(ASKED)) == (
        "embeddings",
        {"model": "e5", "input": ["one", "two"], "encoding_format": "float", "dimensions": 3},
    )
    completion = answered({"data": [vector(1, 0.5), vector(0, -1.0)], "usage": {"prompt_tokens": 7}})
    assert completion.embeddings == ((-1.0,), (0.5,))
    assert (completion.prompt_tokens, completion.completion_tokens, completion.finish_reason) == (7, 0, "stop")


@pytest.mark.parametrize("data", [[vector(0, 1.0)], [vector(0, 1.0), vector(0, 1.0)], [vector(0, 1.0), vector(2, 1.0)]])
def test_an_answer_without_one_embedding_for_each_text_is_a_failure(data: object) -> None:
    with pytest.raises(EngineFailed):
        answered({"data": data})


@given(NOISE | st.fixed_dictionaries({"data": NOISE | st.lists(NOISE, max_size=3)}), st.sampled_from([200, 400, 404]))
def test_any_answer_is_embeddings_or_an_engine_s_error(document: object, status: int) -> None:
    try:
        found = answered(document, status)
    except EngineError:
        return
    assert isinstance(found, TryAgain) or len(found.embeddings) == 2


def test_a_server_or_an_engine_without_embeddings_refuses_the_field() -> None:
    with pytest.raises(RequestRejected, match=r"embed: the server has no /embeddings"):
        answered({"detail": "Not Found"}, 404)
    with pytest.raises(RequestRejected, match="embed: this engine gives no embeddings"):
        parted(ASKED)
    with pytest.raises(RequestRejected, match="embed: too long"):
        answered({"error": {"message": "too long", "param": "input"}}, 400)
