"""Job files: valid lines, and the errors of invalid ones."""

from __future__ import annotations

import json

import pytest

from producers.jsonl import LineProblem, read_jobs
from schemas.codec import write_job
from schemas.job import Job, Message
from schemas.problems import Problem

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


def test_a_callback_is_for_the_jobs_that_name_none() -> None:
    read = read_jobs([b'{"prompt": "a"}', json.dumps(BATCH_LINE).encode()], "https://example.com/theirs")
    assert [job.callback_url for job in read.jobs] == ["https://example.com/theirs", "https://example.com/own"]


def test_blank_lines_and_a_byte_order_mark_are_passed_over_and_lines_keep_their_numbers() -> None:
    read = read_jobs([b'\xef\xbb\xbf{"prompt": "a"}\r\n', b"\r\n", b'{"prompt": "b"}'])
    assert read.problems == []
    assert read.lines == [1, 3]


def test_every_problem_is_found_with_its_line_and_field_and_without_the_value() -> None:
    read = read_jobs(
        [
            b'{"prompt": "a"}',
            b"not json",
            b'{"prompt": ["private"]}',
            b"{}",
            b'{"prompt": "a", "callback_url": "ftp://private"}',
            b'{"prompt": "a", "priority": 11}',
            b"\xff",
        ]
    )
    assert [(found.line, found.problem.field) for found in read.problems] == [
        (2, "value"),
        (3, "prompt"),
        (4, "prompt"),
        (5, "callback_url"),
        (6, "priority"),
        (7, "value"),
    ]
    assert "private" not in "".join(map(str, read.problems))


def test_a_job_that_is_too_large_is_found_before_it_is_sent() -> None:
    read = read_jobs([json.dumps({"prompt": "x" * 600_000}).encode()])
    assert [(found.line, found.problem.reason) for found in read.problems] == [(1, "is larger than 524288 bytes")]


def test_the_same_job_id_twice_is_a_problem() -> None:
    read = read_jobs(
        [b'{"job_id": "a", "prompt": "x"}', b'{"job_id": "b", "prompt": "x"}', b'{"job_id": "a", "prompt": "y"}']
    )
    assert read.problems == [LineProblem(3, Problem("job_id", "stands on line 1 too"))]


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


def test_the_same_custom_id_twice_is_a_problem_also_in_lines_of_two_kinds() -> None:
    lines = [json.dumps(BATCH_LINE).encode(), b'{"prompt": "x"}', b'{"custom_id": "request-1", "prompt": "x"}']
    assert read_jobs(lines).problems == [LineProblem(3, Problem("custom_id", "stands on line 1 too"))]


@pytest.mark.parametrize(
    ("asked", "named"), [(None, ["gpt-4o-mini", "mine", None]), ("any", [None] * 3), ("m", ["m"] * 3)]
)
def test_a_model_for_all_lines_or_none_replaces_the_models_that_the_lines_name(
    asked: str | None, named: list[str | None]
) -> None:
    batch = json.dumps(BATCH_LINE).replace('"echo"', '"gpt-4o-mini"').encode()
    lines = [batch, b'{"prompt": "x", "model_id": "mine"}', b'{"prompt": "x"}']
    jobs = read_jobs(lines, model=asked).jobs
    assert [job.model_id for job in jobs] == named
    assert [json.loads(write_job(job)).get("model_id") for job in jobs] == named
