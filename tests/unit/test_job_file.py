"""The job file of `postback submit`: omitted lines, and messages grouped by reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.postback_command import environment_of, postback_here

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


def test_where_no_line_is_valid_nothing_is_sent_and_the_lines_are_kept(tmp_path: Path) -> None:
    invalid = tmp_path / "invalid.jsonl"
    status, said = check("-", "--skip-invalid", invalid, given="{}\n{}\n")
    assert (status, said[-1]) == (2, "standard input holds no valid job; nothing was sent")
    assert [json.loads(line)["line"] for line in invalid.read_text().splitlines()] == [1, 2]


def test_the_file_of_jobs_is_never_emptied_for_its_own_invalid_lines(tmp_path: Path) -> None:
    jobs, link = tmp_path / "jobs.jsonl", tmp_path / "link.jsonl"
    jobs.write_text(f"{FINE}{{}}\n")
    link.hardlink_to(jobs)
    status, said = check(jobs, "--skip-invalid", link)
    assert (status, said) == (2, [f"--skip-invalid: {link} is the file of jobs; nothing was sent"])
    assert jobs.read_text() == f"{FINE}{{}}\n"


@pytest.mark.parametrize("option", ["--receipt", "--results"])
def test_invalid_lines_have_a_file_of_their_own(option: str, tmp_path: Path) -> None:
    arguments = ("submit", "-", "--wait", option, str(tmp_path / "one"), "--skip-invalid", f"{tmp_path}/./one")
    done = postback_here(*arguments, env=environment_of(), given=FINE)
    said = "postback: --skip-invalid: names the file of another option; nothing was sent\n"
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (2, said, [])


def test_a_disk_that_is_full_stops_the_submission_before_anything_is_sent() -> None:
    status, said = check("-", "--skip-invalid", "/dev/full", given=f"{FINE}{{}}\n")
    assert (status, said) == (2, ["--skip-invalid /dev/full: No space left on device; nothing was sent"])
