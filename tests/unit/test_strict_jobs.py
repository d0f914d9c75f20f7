"""Jobs as the gateway reads them: unknown fields are refused by name, and any input gives a job or a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams

from schemas.job import Job
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, URLS
from schemas.problems import MAX_PROBLEMS
from schemas.strict import NotAJob, body_job, ignored_members, job_in, job_of, parsed

QUESTIONS: dict[str, dict[str, Any]] = {
    CHAT_COMPLETIONS: {"messages": [{"role": "user", "content": "Why?"}]},
    COMPLETIONS: {"prompt": "Why?"},
    RESPONSES: {"input": "Why?"},
}
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=9), some, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*Job.model_fields, "custom_id", "method", "url", "body", "input", "instructions", "model"])
DOCUMENTS = NOISE | st.dictionaries(NAMES | st.text(max_size=9), NOISE | st.sampled_from(URLS), max_size=6)


def problems(document: object) -> list[str]:
    with pytest.raises(NotAJob) as raised:
        job_in(json.dumps(document).encode())
    return [str(problem) for problem in raised.value.problems]


def body_problems(url: str, body: object) -> list[str]:
    with pytest.raises(NotAJob) as raised:
        body_job(url, body)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"prompt": "q", "ttl": 3}, ["ttl: is unknown; did you mean `ttl_seconds`?"]),
        ({"prompt": "q", "sources": {"urlz": []}}, ["sources.urlz: is unknown; did you mean `sources.urls`?"]),
        ({"prompt": "q", "zzz": 1}, ["zzz: is unknown; remove it"]),
        (
            {"promt": "q"},
            [
                "promt: is unknown; did you mean `prompt`?",
                "prompt: exactly one of `prompt`, `messages`, `embed`, `rerank`, `score`, `classify` and "
                "`payload_url` is required",
            ],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "lang": 1}], "nme": 1}]},
            ["messages.0.nme: is unknown; remove it", "messages.0.content.0.lang: is unknown; remove it"],
        ),
        ([], ["value: is not a JSON object"]),
        ({"prompt": "q", "custom_id": "a\0"}, ["custom_id: has a NUL character, which a database cannot store"]),
        ({"prompt": "q", "metadata": {"\0": ""}}, ["metadata: has a NUL character, which a database cannot store"]),
    ],
)
def test_each_problem_of_a_job_names_its_field_and_the_fix(document: object, found: list[str]) -> None:
    assert problems(document) == found


def test_a_batch_line_is_a_job_and_its_problems_are_named_in_the_line() -> None:
    line = {"custom_id": "a", "url": RESPONSES, "body": {**QUESTIONS[RESPONSES], "max_output_tokens": 5}}
    job = job_in(json.dumps(line).encode())

    assert (job.custom_id, job.max_tokens) == ("a", 5)
    line["body"] = {**QUESTIONS[RESPONSES], "max_tokens": 5}
    assert problems({**line, "urgent": True}) == [
        "urgent: is unknown; remove it",
        "body.max_tokens: is unknown; did you mean `max_output_tokens`?",
    ]


@pytest.mark.parametrize(
    ("url", "member", "meant"),
    [
        (CHAT_COMPLETIONS, "temprature", "temperature"),
        (CHAT_COMPLETIONS, "max_output_tokens", "max_completion_tokens"),
        (COMPLETIONS, "messages", "prompt"),
        (RESPONSES, "max_token", "max_output_tokens"),
        (RESPONSES, "promt", "input"),
        (RESPONSES, "response_format", "text"),
    ],
)
def test_a_body_with_a_member_of_another_url_or_a_typing_error_gets_the_right_name(
    url: str, member: str, meant: str
) -> None:
    assert body_problems(url, {**QUESTIONS[url], member: 1}) == [f"{member}: is unknown; did you mean `{meant}`?"]


@pytest.mark.parametrize(
    ("member", "value", "instead"),
    [
        ("stream", True, "; the answer comes whole"),
        ("previous_response_id", "resp_1", "; send the earlier messages in `input`"),
        ("modalities", ["audio"], ""),
    ],
)
def test_members_that_would_change_the_answer_are_refused_with_the_way_around(
    member: str, value: object, instead: str
) -> None:
    assert body_problems(RESPONSES, {**QUESTIONS[RESPONSES], member: value}) == [
        f"{member}: is not supported here{instead}"
    ]


@pytest.mark.parametrize(
    ("url", "params"), [(CHAT_COMPLETIONS, ChatParams), (COMPLETIONS, CompletionParams), (RESPONSES, ResponseParams)]
)
def test_every_member_that_openais_package_sends_is_known(url: str, params: type) -> None:
    for member in params.__annotations__.keys() - QUESTIONS[url].keys():
        try:
            body_job(url, {**QUESTIONS[url], member: "?"})
        except NotAJob as refused:
            assert "unknown" not in str(refused), member


def test_members_without_effect_are_named() -> None:
    body = {**QUESTIONS[CHAT_COMPLETIONS], "presence_penalty": 1, "logit_bias": None, "user": "u"}
    assert ignored_members(CHAT_COMPLETIONS, body) == "ignored, since no engine here has it: `presence_penalty`"
    assert ignored_members(CHAT_COMPLETIONS, QUESTIONS[CHAT_COMPLETIONS]) is None


@given(st.binary(max_size=40) | DOCUMENTS.map(lambda document: json.dumps(document).encode()))
@example(b'{"prompt":"q","temperature":NaN}')
@example(b'{"prompt":"\\ud800"}')
@example(b"[" * 5000)
@example(b'{"prompt":"q","seed":' + b"9" * 5000 + b"}")
def test_any_bytes_are_a_job_or_are_refused_with_few_problems(body: bytes) -> None:
    try:
        job_in(body)
        job_of(parsed(body))
    except NotAJob as refused:
        assert 1 <= len(refused.problems) <= MAX_PROBLEMS


@given(st.sampled_from(URLS), NOISE | st.dictionaries(NAMES | st.text(max_size=9), NOISE, max_size=5))
def test_any_body_is_a_job_or_is_refused_with_few_problems(url: str, body: object) -> None:
    try:
        body_job(url, body)
    except NotAJob as refused:
        assert 1 <= len(refused.problems) <= MAX_PROBLEMS


def test_the_hash_of_a_prompt_is_that_of_its_text() -> None:
    asked = Job.model_validate(QUESTIONS[CHAT_COMPLETIONS])
    assert Job(prompt="Why?").prompt_sha256 == "5d8a995a6fa7cf7c577cc9d49ca9e00d4aee4d0bcd5e2ad5caff27e2a8097276"
    assert asked.prompt_sha256 == body_job(RESPONSES, QUESTIONS[RESPONSES]).prompt_sha256
