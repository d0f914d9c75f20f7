"""Commands with `--gateway`, as their users run them: jobs, results, cancellations and batches over HTTPS."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway
from tests.postback_command import POSTBACK, environment_of, postback_here, started
from tests.product import eventually
from tests.unit.batch_rig import jsonl, line

pytestmark = pytest.mark.broker

HUGE_BYTES = 120 * 1024 * 1024


@dataclass
class Shell:
    """Commands of a tenant. The tenant's key is in their environment; they cannot reach Kafka."""

    gateway: Gateway
    key: str
    folder: Path

    def run(
        self, *arguments: str, given: str = "", url: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = environment_of(POSTBACK_GATEWAY_KEY=self.key, POSTBACK_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
        through = ("--gateway", url or self.gateway.url)
        return postback_here(*arguments, *through, env=environment | variables, given=given)

    def file(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)


@pytest.fixture(scope="module")
def key(shared_gateway: Gateway, module_fleet_here: FleetHere) -> str:
    """A key of a gateway that has a worker behind it."""
    module_fleet_here.worker("w")
    return shared_gateway.key()


@pytest.fixture
def shell(shared_gateway: Gateway, key: str, tmp_path: Path) -> Shell:
    return Shell(shared_gateway, key, tmp_path)


def test_jobs_are_submitted_and_awaited_and_their_results_found_again(shell: Shell) -> None:
    jobs = shell.file("jobs.jsonl", jsonl({"prompt": f"question {number}"} for number in range(20)))
    receipt, answers = str(shell.folder / "receipt.jsonl"), shell.folder / "answers.jsonl"
    done = shell.run("submit", jobs, "--receipt", receipt, "--wait", "--results", str(answers))
    assert (done.returncode, done.stderr) == (
        0,
        "postback: 20 of 20 jobs accepted, 20 succeeded\n",
    )
    ids = done.stdout.split()
    assert len(set(ids)) == 20
    assert sorted(json.loads(text)["job_id"] for text in answers.read_text().splitlines()) == sorted(ids)

    again = shell.run("submit", jobs, "--receipt", receipt)
    assert again.stderr.splitlines()[0].startswith("postback: 20 of 20 jobs are accepted already")
    found = shell.run("results", "--ids", receipt, "--ordered")
    assert [json.loads(text)["job_id"] for text in found.stdout.splitlines()] == ids
    for more in ((), ("--wait", "--timeout", "60")):
        named = shell.run("results", "--id", ids[3], *more)
        assert (named.returncode, json.loads(named.stdout)["job_id"]) == (0, ids[3])


def test_a_job_whose_answer_was_lost_is_looked_up_and_not_sent_again(shell: Shell) -> None:
    jobs, receipt = shell.file("jobs.jsonl", b'{"prompt": "q"}\n'), shell.folder / "receipt.jsonl"
    (job_id,) = shell.run("submit", jobs, "--receipt", str(receipt)).stdout.split()
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"accepted": None}) + "\n")
    done = shell.run("submit", jobs, "--receipt", str(receipt))
    assert (done.returncode, done.stdout.split()) == (0, [job_id])
    said = "postback: 1 jobs of an earlier run that were not known to be accepted are in the gateway"
    assert said in done.stderr.splitlines()


def test_a_refused_job_is_named_with_its_line_and_the_reason(shell: Shell) -> None:
    jobs = shell.file("jobs.jsonl", b'{"prompt": "q", "callback_url": "https://10.0.0.1/hook"}\n')
    done = shell.run("submit", jobs)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not accepted" in done.stderr
    assert "callback_url" in done.stderr


def test_a_batch_is_created_awaited_shown_and_downloaded(shell: Shell) -> None:
    requests = shell.file("requests.jsonl", jsonl([*(line(number) for number in range(10)), line(10, body={})]))
    output, errors = shell.folder / "output.jsonl", shell.folder / "errors.jsonl"
    failed = shell.run("batches", "create", requests, "--wait", "--output", str(output))
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].split()[2] == "failed"

    good = shell.file("good.jsonl", jsonl(line(number) for number in range(10)))
    done = shell.run("batches", "create", good, "--output", str(output), "--errors", str(errors))
    (batch_id,) = done.stdout.split()
    assert (done.returncode, done.stderr.splitlines()) == (
        0,
        [
            f"postback: the batch has no file for --errors; {errors} stays as it is",
            f"postback: {batch_id}  completed  10 of 10 succeeded, 0 failed",
        ],
    )
    assert [json.loads(text)["custom_id"] for text in output.read_text().splitlines()] == [
        f"row-{number}" for number in range(10)
    ]
    assert shell.run("batches", "list").stdout.splitlines()[0].split()[:2] == [batch_id, "completed"]
    assert json.loads(shell.run("batches", "show", batch_id, "--json").stdout)["id"] == batch_id
    refused = shell.run("batches", "cancel", batch_id)
    assert (refused.returncode, batch_id in refused.stderr) == (1, True)
    assert shell.run("batches", "wait", batch_id, "--timeout", "60").returncode == 0


def test_a_file_is_uploaded_listed_shown_downloaded_and_deleted(shell: Shell) -> None:
    content = b"x" * (5 * 1024 * 1024)
    source, target = shell.file("large.bin", content), shell.folder / "again.bin"
    uploaded = shell.run("files", "upload", source, "--purpose", "user_data", XDG_STATE_HOME=str(shell.folder))
    (file_id,) = uploaded.stdout.split()
    assert (uploaded.returncode, uploaded.stderr) == (0, "")
    line = f"{file_id}  user_data  {len(content)} bytes  large.bin\n"
    assert shell.run("files", "list", "--purpose", "user_data").stdout == line
    assert shell.run("files", "show", file_id).stdout == line
    assert json.loads(shell.run("files", "show", file_id, "--json").stdout)["bytes"] == len(content)
    downloaded = shell.run("files", "download", file_id, "--output", str(target))
    assert (downloaded.returncode, target.read_bytes() == content) == (0, True)
    assert shell.run("files", "delete", file_id).returncode == 0
    assert shell.run("files", "delete", file_id).returncode == 1
    assert shell.run("files", "upload", f"{source}.absent").returncode == 2


def test_an_upload_goes_on_after_its_command_was_killed(shell: Shell, shared_gateway: Gateway) -> None:
    path = Path(shell.file("huge.bin", b""))
    os.truncate(path, HUGE_BYTES)
    command = ["files", "upload", str(path), "--purpose", "vision", "--gateway", shell.gateway.url]
    environment = environment_of(POSTBACK_GATEWAY_KEY=shell.key, XDG_STATE_HOME=str(shell.folder))
    states = shell.folder / "postback" / "uploads"

    def has_a_part() -> bool:
        return any(json.loads(state.read_text())["part_ids"] for state in states.glob("*.json"))

    with started(*command, env=environment) as killed:
        eventually(has_a_part, 60, "no part is uploaded")
        killed.kill()
    (kept,) = states.glob("*.json")
    begun = json.loads(kept.read_text())
    done = shell.run(*command[:-2], XDG_STATE_HOME=str(shell.folder))

    assert (done.returncode, kept.exists()) == (0, False)
    assert 4 * 1024 * 1024 * len(begun["part_ids"]) < HUGE_BYTES
    with sqlite3.connect(shared_gateway.store.removeprefix("sqlite:///")) as store:
        uploads = store.execute("SELECT id, status FROM uploads WHERE purpose = 'vision'").fetchall()
    assert uploads == [(begun["upload_id"], "completed")]
    assert json.loads(shell.run("files", "show", done.stdout.strip(), "--json").stdout)["bytes"] == HUGE_BYTES


def test_a_job_is_cancelled_unless_it_has_ended_or_is_unknown(shell: Shell) -> None:
    (ended,) = shell.run("submit", "-", "--wait", given='{"prompt": "q"}\n').stdout.split()
    done = shell.run("cancel", ended, "no-such-job")
    assert done.returncode == 1
    assert [ended in each or "no-such-job" in each for each in done.stderr.splitlines()] == [True, True, False]


@pytest.mark.parametrize(
    "command", [["submit", "-"], ["results", "--id", "j"], ["batches", "list"], ["files", "list"], ["cancel", "j"]]
)
def test_a_wrong_or_missing_key_or_url_is_reported_in_one_line(shell: Shell, command: list[str]) -> None:
    job = '{"prompt": "q"}\n'
    wrong = shell.run(*command, given=job, POSTBACK_GATEWAY_KEY="pk_wrong")
    assert wrong.returncode == 1
    assert "pk_wrong" not in wrong.stderr
    missing = shell.run(*command, given=job, POSTBACK_GATEWAY_KEY="")
    assert (missing.returncode, "POSTBACK_GATEWAY_KEY" in missing.stderr) == (2, True)
    plain = shell.run(*command, given=job, url="http://postback.example")
    assert (plain.returncode, "use https://" in plain.stderr) == (2, True)


def test_a_request_that_fails_leaves_the_files_and_one_file_for_two_outputs_is_refused_before_it(shell: Shell) -> None:
    kept = shell.file("kept.jsonl", b"of an earlier run\n")
    refused = shell.run("results", "--id", "a", "--output", kept, POSTBACK_GATEWAY_KEY="pbk_unknown")
    away = shell.run("results", "--id", "a", "--output", kept, "--wait", "--timeout", "1", url="http://127.0.0.1:1")
    assert (refused.returncode, away.returncode, Path(kept).read_text()) == (1, 1, "of an earlier run\n")
    for command in (("create", kept), ("wait", "batch_1")):
        for files, said in (
            (("--output", "new", "--errors", "./new"), "--errors new: is also the file of --output; name another file"),
            (("--output", "/absent/new"), "--output /absent/new: No such file or directory"),
        ):
            done = shell.run("batches", *command, *files, url="http://127.0.0.1:1")
            assert (done.returncode, done.stderr) == (2, f"postback: {said}\n")
    done = shell.run("batches", "create", kept, "--errors", kept, url="http://127.0.0.1:1")
    said = f"postback: --errors {kept}: is also the file of the requests; name another file\n"
    assert (done.returncode, done.stderr, Path(kept).read_text()) == (2, said, "of an earlier run\n")


def test_a_full_disk_ends_a_download_with_the_command_that_goes_on(shell: Shell) -> None:
    target = shell.folder / "target"
    target.write_text("of an earlier run\n")
    source = shell.file("two.bin", b"x" * 2_000_000)
    (file_id,) = shell.run("files", "upload", source, "--purpose", "user_data").stdout.split()
    command = (POSTBACK, "files", "download", file_id, "--output", str(target), "--gateway", shell.gateway.url)
    process = subprocess.run(
        ("bash", "-c", 'ulimit -f 900 && exec "$@"', "-", *command),
        env=environment_of(POSTBACK_GATEWAY_KEY=shell.key),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert target.read_text() == "of an earlier run\n"
    assert re.fullmatch(
        rf"postback: --output {target}: File too large; \d+ of 2000000 bytes came, and none is kept; "
        rf"free space there, then run `postback files download {file_id} --output {target}`\n",
        process.stderr,
    )


def test_a_key_is_read_from_a_file(shell: Shell) -> None:
    path = shell.file("key.txt", shell.key.encode() + b"\n")
    by_option = shell.run("batches", "list", "--key", f"@{path}", POSTBACK_GATEWAY_KEY="")
    by_variable = shell.run("batches", "list", POSTBACK_GATEWAY_KEY="", POSTBACK_GATEWAY_KEY_FILE=path)
    assert (by_option.returncode, by_variable.returncode) == (0, 0)
    absent = shell.run("batches", "list", "--key", f"@{path}.absent")
    assert (absent.returncode, absent.stderr) == (2, f"postback: --key @{path}.absent: No such file or directory\n")
