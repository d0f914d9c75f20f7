"""Job files: their lines, OpenAI's lines among them, ids of jobs, receipts of submissions, and output lines."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from producers.identity import new_job_id
from producers.jsonl import read_jobs
from producers.receipts import ReceiptRefused, held, read_receipt, receipt_of, write_receipt
from schemas.codec import InvalidJob, Origin, read_job, write_job
from schemas.job import Identifier, Job, Message
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from schemas.openai_answers import output_line
from schemas.outcome import Outcome
from schemas.result import Citation, Result, ResultError, Support, Usage
from telemetry.hand_clock import SetClock
from tests.postback_command import environment_of, postback_here

BATCH_LINE = {
    "custom_id": "request-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "model": "echo",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 10,
        "metadata": {"webhook_url": "https://example.com/own"},
    },
}


def test_a_line_is_a_job_or_a_line_of_an_openai_batch() -> None:
    read = read_jobs([b'{"prompt": "Why?"}\n', json.dumps(BATCH_LINE).encode()])
    assert read.problems == []
    assert (read.lines, read.urls) == ([1, 2], [None, "/v1/chat/completions"])
    assert read.jobs == [
        Job(prompt="Why?"),
        Job(
            custom_id="request-1",
            model_id="echo",
            messages=[Message(role="user", content="Hello")],
            max_tokens=10,
            callback_url="https://example.com/own",
        ),
    ]


def test_ignored_fields_are_listed_with_their_lines_also_for_lines_that_are_no_jobs() -> None:
    def with_body(number: int, **more: object) -> bytes:
        body = {**BATCH_LINE["body"], **more}  # type: ignore[dict-item] # `body` is a dict
        return json.dumps({**BATCH_LINE, "custom_id": f"request-{number}", "body": body}).encode()

    taken = {"temperature": 1, "top_p": 0.5, "stop": "x", "n": 1, "user": "u", "logit_bias": None}
    lines = [with_body(1, top_k=5, **taken), with_body(2, top_k=5, max_output_tokens=9)]
    lines += [b'{"prompt": "x", "top_k": 5, "ttl": null}', b'{"promt": "x"}', b"[]", b"{"]
    assert read_jobs(lines).unknown == {
        "body.top_k": [1, 2],
        "body.max_output_tokens": [2],
        "top_k": [3],
        "promt": [4],
    }


def test_a_callback_is_for_the_jobs_that_name_none_and_lines_keep_their_numbers() -> None:
    lines = [b'\xef\xbb\xbf{"prompt": "a"}\r\n', b"\r\n", json.dumps(BATCH_LINE).encode()]
    read = read_jobs(lines, "https://example.com/theirs")
    assert [job.callback_url for job in read.jobs] == ["https://example.com/theirs", "https://example.com/own"]
    assert (read.problems, read.lines) == ([], [1, 3])


def test_every_problem_is_found_with_its_line_and_field_and_without_the_value() -> None:
    lines = {
        b'{"prompt": "a", "job_id": "a"}': None,
        b"not json": "value",
        b'{"prompt": ["private"]}': "prompt",
        b"{}": "prompt",
        b'{"prompt": "a", "callback_url": "ftp://private"}': "callback_url",
        b'{"prompt": "a", "priority": 11}': "priority",
        b"\xff": "value",
        json.dumps({"prompt": "x" * 600_000}).encode(): "value",
        json.dumps(BATCH_LINE).encode(): None,
        b'{"prompt": "b", "job_id": "a"}': "job_id",
        b'{"prompt": "b", "custom_id": "request-1"}': "custom_id",
    }
    problems = read_jobs(list(lines)).problems
    wanted = [(number, field) for number, field in enumerate(lines.values(), 1) if field]
    assert [(found.line, found.problem.field) for found in problems] == wanted
    assert "private" not in "".join(map(str, problems))
    assert [found.problem.reason for found in problems[-3:]] == [
        *("is larger than 524288 bytes", "stands on line 1 too", "stands on line 9 too")
    ]


def test_the_jobs_are_those_of_valid_lines_and_the_others_are_handed_over_with_their_problems() -> None:
    lines = [b'{"job_id": "a", "prompt": "x"}', b"[]\n", b'{"job_id": "a", "prompt": "y"}', b'{"prompt": "z"}']
    told: list[tuple[int, bytes, list[str]]] = []
    read = read_jobs(
        lines,
        "https://example.com/hook",
        on_invalid=lambda number, content, problems: told.append((number, content, list(map(str, problems)))),
    )
    assert [job.prompt for job in read.jobs] == ["x", "z"]
    assert (read.lines, read.urls, read.invalid) == ([1, 4], [None, None], 2)
    assert [job.callback_url for job in read.jobs] == ["https://example.com/hook"] * 2
    assert told == [
        (2, b"[]", [str(found.problem) for found in read.problems if found.line == 2]),
        (3, b'{"job_id": "a", "prompt": "y"}', ["job_id: stands on line 1 too"]),
    ]


def test_a_model_for_all_lines_or_none_replaces_the_models_that_the_lines_name() -> None:
    batch = json.dumps(BATCH_LINE).replace('"echo"', '"gpt-4o-mini"').encode()
    lines = [batch, b'{"prompt": "x", "model_id": "mine"}', b'{"prompt": "x"}']
    for asked, named in ((None, ["gpt-4o-mini", "mine", None]), ("any", [None] * 3), ("m", ["m"] * 3)):
        jobs = read_jobs(lines, model=asked).jobs
        assert [job.model_id for job in jobs] == named
        assert [json.loads(write_job(job)).get("model_id") for job in jobs] == named


# -- `postback submit --check` -----------------------------------------------------------------------------------------


FINE = '{"prompt": "fine"}\n'


def check(*arguments: str | Path, given: str = "") -> tuple[int, list[str]]:
    done = postback_here("submit", *map(str, arguments), "--check", env=environment_of(), given=given)
    assert done.stdout == ""
    return done.returncode, [line.removeprefix("postback: ") for line in done.stderr.splitlines()]


def test_lines_with_one_problem_or_one_unknown_field_are_named_in_one_message() -> None:
    given = "".join(f'{{"prompt": "q{n}", "priority": 11, "temprature": 1}}\n{FINE}' for n in range(600))
    status, said = check("-", given=given)
    reason = said[0].removeprefix("standard input: lines 1, 3, 5 and 597 more: priority: ")
    assert (status, reason[:5]) == (2, "Input")
    assert said[1:] == [
        "lines 1, 3, 5 and 597 more: unknown field `temprature` (did you mean `temperature`?), ignored",
        "600 problems; nothing was sent",
    ]


def test_more_different_messages_than_are_shown_are_counted() -> None:
    status, said = check("-", given="".join(f'{{"prompt": "q", "field{n}x": 1}}\n' for n in range(23)))
    assert (status, said[-1]) == (0, "23 jobs can be sent; nothing was sent")
    assert [line.split(":")[0] for line in said[:-2]] == [f"line {n}" for n in range(1, 21)]
    assert said[-2] == "and 3 more"


def test_a_check_writes_the_invalid_lines_too_and_ends_with_1(tmp_path: Path) -> None:
    invalid = tmp_path / "invalid.jsonl"
    status, said = check("-", "--skip-invalid", invalid, given=f"{FINE}  {{}}\n")
    assert (status, said[1:]) == (
        1,
        [f"skipped 1 invalid line; {invalid} has each with its reasons", "1 jobs can be sent; nothing was sent"],
    )
    [line] = map(json.loads, invalid.read_text().splitlines())
    assert said[0] == f"standard input:2: {line['error']}"
    assert (line["line"], line["input"]) == (2, "{}")
    status, said = check("-", "--skip-invalid", invalid, given="{}\n{}\n")
    assert (status, said[-1]) == (2, "standard input holds no valid job; nothing was sent")
    assert [json.loads(line)["line"] for line in invalid.read_text().splitlines()] == [1, 2]


def test_the_file_of_jobs_is_never_emptied_for_its_own_invalid_lines(tmp_path: Path) -> None:
    jobs, link = tmp_path / "jobs.jsonl", tmp_path / "link.jsonl"
    jobs.write_text(f"{FINE}{{}}\n")
    link.hardlink_to(jobs)
    status, said = check(jobs, "--skip-invalid", link)
    assert (status, said) == (2, [f"--skip-invalid {link}: is also the file of the jobs; name another file"])
    assert jobs.read_text() == f"{FINE}{{}}\n"


def test_invalid_lines_have_a_file_of_their_own_and_a_full_disk_stops_the_submission(tmp_path: Path) -> None:
    for option in ("--receipt", "--results"):
        arguments = ("submit", "-", "--wait", option, str(tmp_path / "one"), "--skip-invalid", f"{tmp_path}/./one")
        done = postback_here(*arguments, env=environment_of(), given=FINE)
        said = f"postback: --skip-invalid {tmp_path}/one: is also the file of {option}; name another file\n"
        assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (2, said, [])
    fix = "nothing was sent; free space there, and run the command again"
    full = f"--skip-invalid /dev/full: No space left on device; {fix}"
    assert check("-", "--skip-invalid", "/dev/full", given=f"{FINE}{{}}\n") == (2, [full])


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_a_job_id_is_a_uuid_of_version_7_with_its_time_in_front() -> None:
    # This is the time in the example of RFC 9562, appendix A.6.
    job_id = new_job_id(SetClock(1645557742.0))
    parsed = uuid.UUID(job_id.removeprefix("job_"))
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert job_id.startswith("job_017f22e279b07")
    assert TypeAdapter[str](Identifier).validate_python(job_id) == job_id
    assert len({new_job_id(SetClock(1.0)) for _ in range(1000)}) == 1000
    assert new_job_id(SetClock(1.0)) < new_job_id(SetClock(1.5))


# -- receipts ----------------------------------------------------------------------------------------------------------


LINES = [b'{"prompt": "a"}\n', b'{"prompt": "b"}\n']


def test_a_receipt_belongs_to_one_run_at_a_time_even_before_its_file_exists(tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.jsonl"
    with held(receipt):
        with pytest.raises(ReceiptRefused, match="another run uses this receipt"), held(receipt):
            pass
        begun = receipt_of(read_jobs(LINES), "default", SetClock(1.0), read_receipt(receipt))
        write_receipt(receipt, begun.entries)
        with pytest.raises(ReceiptRefused), held(receipt):  # the receipt was replaced, and the lock still holds
            pass
    with held(receipt):
        assert read_receipt(receipt) == begun.entries
    assert list(tmp_path.iterdir()) == [receipt]


def test_a_receipt_is_the_same_by_whatever_name_and_stays_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    receipt, link = tmp_path / "there" / "receipt.jsonl", tmp_path / "link"
    link.symlink_to(receipt)
    with held(link):
        with pytest.raises(ReceiptRefused), held(receipt):
            pass
        write_receipt(link, receipt_of(read_jobs(LINES), "default", SetClock(1.0)).entries)
    assert link.is_symlink()
    assert len(read_receipt(receipt)) == 2


def test_a_lock_file_that_its_former_holder_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt, lock = tmp_path / "receipt.jsonl", fcntl.flock

    def late(descriptor: int, how: int) -> None:
        """Between this run's opening and locking of the file, the run with the lock ends and another run begins."""
        monkeypatch.undo()
        (tmp_path / ".receipt.jsonl.lock").unlink()
        others.enter_context(held(receipt))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with ExitStack() as others, pytest.raises(ReceiptRefused), held(receipt):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_file_is_left_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReceiptRefused, match="is no file that could be replaced"), held(tmp_path / "pipe"):
        pass
    assert [found.is_fifo() for found in tmp_path.iterdir()] == [True]


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
