"""Job files: their lines, ids of jobs, and receipts of submissions."""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from producers.identity import new_job_id
from producers.jsonl import read_jobs
from producers.receipts import ReceiptRefused, held, read_receipt, receipt_of, write_receipt
from schemas.codec import write_job
from schemas.job import Identifier, Job, Message
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
