from __future__ import annotations

import gc
import json
from typing import Any

import pytest

from schemas.codec import InvalidJob, Origin, read_job
from schemas.job import Job, Message
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from schemas.openai_answers import output_line
from schemas.outcome import Outcome
from schemas.result import Citation, Result, ResultError, Support, Usage

CALLBACK = "https://consumer.example/hook"
CHAT = {"model": "small", "messages": [{"role": "user", "content": "Why?"}]}
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


def line(body: dict[str, Any], url: str = CHAT_COMPLETIONS, **frame: object) -> dict[str, Any]:
    return {"custom_id": "row 1", "method": "POST", "url": url, "body": body, **frame}


def job_from(document: dict[str, Any]) -> Job:
    return read_job(json.dumps(document).encode(), None, Origin("topic", 0, 0), 0).job


def refusal(document: dict[str, Any]) -> InvalidJob:
    with pytest.raises(InvalidJob) as raised:
        job_from(document)
    return raised.value


def test_a_chat_line_is_a_job_as_it_stands() -> None:
    body = {
        **CHAT,
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "seed": 3,
        "metadata": {"webhook_url": CALLBACK, "team": "a"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
    }
    job = job_from(line(body))

    assert job.response_format is not None
    assert job.response_format.json_schema is not None
    assert job.response_format.json_schema.schema_ == SCHEMA
    assert job.model_dump(exclude={"response_format"}, exclude_unset=True) == {
        "custom_id": "row 1",
        "model_id": "small",
        "messages": [{"role": "user", "content": "Why?"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 3,
        "callback_url": CALLBACK,
        "metadata": {"team": "a"},
    }


def test_a_completions_line_asks_its_prompt_and_a_responses_line_its_input() -> None:
    for prompt in ("Why?", ["Why?"]):
        job = job_from(line({"model": "small", "prompt": prompt, "max_tokens": 9}, COMPLETIONS))
        assert (job.raw, job.prompt, job.messages, job.max_tokens) == (True, "Why?", None, 9)
    job = job_from(line({"model": "small", "input": "Why?", "max_output_tokens": 9}, RESPONSES))
    assert (job.messages, job.max_tokens) == ([Message(role="user", content="Why?")], 9)
    assert job_from({**line({}), "prompt": "Why?"}).prompt == "Why?"  # a job of its own is no line


def test_a_responses_line_brings_instructions_messages_and_a_schema() -> None:
    body = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Because."}]},
            {"role": "user", "content": "Really?"},
        ],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": None}},
        "background": True,
        "store": True,
    }
    job = job_from(line(body, RESPONSES))

    assert job.messages is not None
    assert [(message.role, message.text) for message in job.messages] == [
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", "Because."),
        ("user", "Really?"),
    ]
    assert job.response_format is not None
    assert job.response_format.type == "json_schema"


def test_our_own_members_may_stand_in_a_lines_body() -> None:
    sources = {"urls": ["https://facts.example/"]}
    job = job_from(line({**CHAT, "sources": sources, "priority": 3, "ttl_seconds": 60, "context_window": 512}))

    assert job.sources is not None
    assert job.sources.urls == sources["urls"]
    assert (job.priority, job.ttl_seconds, job.context_window) == (3, 60, 512)


def test_stop_texts_and_sampling_parameters_are_taken_and_members_that_ask_for_nothing_are_passed_over() -> None:
    for stop, texts in (("END", ["END"]), (["a", "b"], ["a", "b"]), ([], [])):
        job = job_from(line({**CHAT, "stop": stop, "top_p": 0.9}))
        assert (job.stop, job.top_p) == (texts, 0.9)
    nothing = {
        "n": 1,
        "stream": False,
        "stop": "",
        "tools": [],
        "presence_penalty": 1,
        "user": "u",
        "temperature": None,
    }
    assert job_from(line({**CHAT, **nothing})) == job_from(line(CHAT))


@pytest.mark.parametrize(
    ("document", "field"),
    [
        *((line(CHAT, custom_id=custom_id), "custom_id") for custom_id in (None, "")),
        (line(CHAT, method="GET"), "method"),
        (line(CHAT, "/v1/moderations"), "url"),
        ({**line(CHAT), "body": []}, "body"),
        (line({}), "body.messages"),
        (line({"messages": []}), "body.messages"),
        (line({"messages": [{"role": "tool", "content": "a"}]}), "body.messages.0"),
        (line({**CHAT, "model": "a b"}), "body.model"),
        (line({**CHAT, "top_p": 0}), "body.top_p"),
        (line({**CHAT, "stop": 7}), "body.stop"),
        (line({**CHAT, "stop": ["a"] * 5}), "body.stop"),
        (line({**CHAT, "stop": [""]}), "body.stop.0"),
        (line({**CHAT, "metadata": {"webhook_url": "ftp://a"}}), "body.metadata.webhook_url"),
        *((line({**CHAT, "metadata": metadata}), "body.metadata") for metadata in ("s3cret", {"s3cret": 5})),
        (line({}, COMPLETIONS), "body.prompt"),
        (line({"prompt": [1, 2]}, COMPLETIONS), "body.prompt"),
        (line({"input": []}, RESPONSES), "body.input"),
        (line({"input": [{"type": "reasoning"}]}, RESPONSES), "body.input.0"),
        (
            line({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, RESPONSES),
            "body.input.0.content.0",
        ),
        (line({"input": [{"role": "nobody", "content": "a"}]}, RESPONSES), "body.input.0.role"),
        (line({"instructions": "b", "input": [{"role": "nobody", "content": "a"}]}, RESPONSES), "body.input.0.role"),
        (line({"instructions": 5, "input": "a"}, RESPONSES), "body.instructions"),
        (line({"input": "a", "max_output_tokens": 0}, RESPONSES), "body.max_output_tokens"),
        (
            line({"input": "a", "text": {"format": {"type": "json_schema"}}}, RESPONSES),
            "body.text.format.json_schema.schema",
        ),
    ],
)
def test_a_line_that_is_no_job_is_refused_by_the_place_in_the_line(document: dict[str, Any], field: str) -> None:
    invalid = refusal(document)

    assert [problem.field for problem in invalid.problems] == [field]
    assert "s3cret" not in str(invalid)


def test_members_that_would_change_the_kind_of_answer_are_refused_and_the_refusal_reaches_the_lines_callback() -> None:
    kinds = {"best_of": 2, "stream": True, "modalities": ["text", "audio"], "previous_response_id": "resp_1"}
    for member, value in kinds.items():
        (problem,) = refusal(line({**CHAT, member: value})).problems
        assert str(problem).startswith(f"body.{member}: is not supported here")
    audio = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
    body = {"messages": [{"role": "user", "content": audio}], "metadata": {"webhook_url": CALLBACK}}
    invalid = refusal(line(body))
    assert invalid.problems[0].field == "body.messages.0.content.0.type"
    assert "only `text` and `image_url` parts are taken" in invalid.problems[0].reason
    assert (invalid.custom_id, invalid.callback_url) == ("row 1", CALLBACK)


RESULT = Result(
    job_id="job_1",
    custom_id="row 1",
    model_id="small",
    outcome=Outcome.SUCCEEDED,
    text="Because.",
    confidence=0.5,
    sources=["https://facts.example/"],
    citations=[Citation(start=0, end=7, source="https://facts.example/", support=Support.EXACT)],
    usage=Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5, cached_tokens=1),
    finish_reason="length",
    metadata={"team": "a"},
    created_at=1_700_000_000,
)
OURS = {
    "confidence": 0.5,
    "sources": ["https://facts.example/"],
    "citations": [{"start": 0, "end": 7, "source": "https://facts.example/", "support": "exact"}],
    "notes": [],
}


def test_a_result_is_a_chat_completion_in_an_output_line() -> None:
    assert output_line(RESULT, CHAT_COMPLETIONS) == {
        "id": "batch_req_job_1",
        "custom_id": "row 1",
        "response": {
            "status_code": 200,
            "request_id": "job_1",
            "body": {
                "id": "chatcmpl-job_1",
                "object": "chat.completion",
                "created": 1_700_000_000,
                "model": "small",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "Because.", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "length",
                    }
                ],
                "usage": {
                    "prompt_tokens": 3,
                    "completion_tokens": 2,
                    "total_tokens": 5,
                    "prompt_tokens_details": {"cached_tokens": 1},
                },
                "postback": OURS,
            },
        },
        "error": None,
    }


@pytest.mark.parametrize("url", [CHAT_COMPLETIONS, COMPLETIONS, RESPONSES])
def test_writing_an_output_line_and_reading_a_job_leave_no_copy_of_all_modules(url: str) -> None:
    """Each line of a batch once left a copy of `sys.modules`, 52 kB, for the garbage collector."""

    def work() -> None:
        output_line(RESULT, url)
        Job.model_validate({"embed": ["a river"]})

    work()
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        work()
        gc.collect()
        left = [each for each in gc.garbage if type(each) is dict and {"sys", "builtins"} <= each.keys()]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not left


def test_a_result_is_a_completion_or_a_response_where_its_line_asked_for_one() -> None:
    completion = output_line(RESULT, COMPLETIONS)["response"]["body"]
    response = output_line(RESULT, RESPONSES)["response"]["body"]

    assert (completion["object"], completion["choices"][0]["text"]) == ("text_completion", "Because.")
    assert (response["object"], response["status"]) == ("response", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["content"][0]["text"] == "Because."
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (3, 2)
    assert response["metadata"] == {"team": "a"}
    assert completion["postback"] == response["postback"] == OURS


def test_a_job_that_failed_is_an_http_error_in_its_line_and_one_that_was_never_answered_an_error_instead() -> None:
    error = ResultError(code="why", message="Because.")
    kinds = {"rejected": (400, "invalid_request_error"), "failed": (500, "server_error")}
    for outcome, (status, kind) in kinds.items():
        output = output_line(RESULT.model_copy(update={"outcome": Outcome(outcome), "error": error}), CHAT_COMPLETIONS)
        said = {"message": "Because.", "type": kind, "param": None, "code": "why"}
        assert (output["response"]["status_code"], output["response"]["body"]) == (status, {"error": said})
        assert output["error"] is None
    for unanswered in (Outcome.EXPIRED, Outcome.CANCELLED):
        output = output_line(RESULT.model_copy(update={"outcome": unanswered}), CHAT_COMPLETIONS)
        assert output["response"] is None
        assert output["error"] == {"code": f"batch_{unanswered}", "message": f"The job was {unanswered}."}
