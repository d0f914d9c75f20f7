"""`postback submit` on a real broker, in all of its outcomes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from schemas.outcome import Outcome
from schemas.settings import KafkaSettings
from schemas.topics import Lane
from tests.fleet_here import FleetHere
from tests.integration.answering_jobs import answering
from tests.integration.submitted import records_of
from tests.postback_command import POSTBACK, environment_of, postback, postback_here

pytestmark = pytest.mark.broker


def test_the_command_submits_thousands_of_jobs_from_standard_input(fleet: KafkaSettings) -> None:
    given = b"".join(b'{"prompt": "q%d"}\n' % number for number in range(5000))
    done = postback_here(
        "submit", "-", "--callback-url", "https://example.com/hook", env=environment_of(fleet), given=given
    )
    assert (done.returncode, done.stderr) == (0, "postback: 5000 of 5000 jobs accepted\n")
    records = records_of(fleet, fleet.topics.requests(bulk=True))
    assert sorted(done.stdout.splitlines()) == sorted(record.key.decode() for record in records)
    assert len(records) == 5000
    assert {json.loads(record.value)["callback_url"] for record in records} == {"https://example.com/hook"}


@pytest.mark.parametrize(
    ("jobs", "options", "lane"),
    [
        (1_000, (), "default"),
        (1_001, (), "bulk"),
        (1, ("--bulk",), "bulk"),
        (1_001, ("--no-bulk",), "default"),
        (2, ("--spare",), "spare"),
    ],
)
def test_a_large_file_takes_the_bulk_lane_unless_it_is_told_otherwise(
    fleet: KafkaSettings, jobs: int, options: tuple[str, ...], lane: Lane
) -> None:
    done = postback_here("submit", "-", *options, env=environment_of(fleet), given='{"prompt": "q"}\n' * jobs)
    assert done.returncode == 0, done.stderr
    found = {topic: len(records_of(fleet, topic)) for topic in fleet.topics.requests_of(None)}
    assert found == {**dict.fromkeys(found, 0), fleet.topics.lane(lane): jobs}


def test_nothing_is_sent_where_a_line_is_bad(fleet: KafkaSettings, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"prompt": "fine"}\n{"prompt": ["private"]}\nnot json\n')
    done = postback_here("submit", file, env=environment_of(fleet))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"postback: {file}:2: prompt: ")
    assert lines[1].startswith(f"postback: {file}:3: value: is not JSON")
    assert lines[2] == "postback: 2 problems; nothing was sent"
    assert "private" not in done.stderr
    assert records_of(fleet, fleet.topics.requests()) == []


def test_invalid_lines_are_kept_with_their_reasons_while_the_valid_ones_are_sent(
    fleet: KafkaSettings, tmp_path: Path
) -> None:
    jobs, invalid, receipt = tmp_path / "jobs.jsonl", tmp_path / "invalid.jsonl", tmp_path / "receipt.jsonl"
    lines = [b'{"prompt": "a"}', b"not \xff JSON", b'{"prompt": ["b"], "priority": 11}', b'{"prompt": "d"}']
    jobs.write_bytes(b"\n".join(lines))
    invalid.write_text("of an earlier run\n")
    arguments = ("submit", str(jobs), "--skip-invalid", str(invalid), "--receipt", str(receipt))
    done = postback_here(*arguments, env=environment_of(fleet))
    assert (done.returncode, len(done.stdout.split())) == (1, 2)
    assert done.stderr.splitlines()[-2:] == [
        f"postback: skipped 2 invalid lines; {invalid} has each with its reasons",
        "postback: 2 of 2 jobs accepted, 2 invalid lines skipped",
    ]
    first, second = map(json.loads, invalid.read_text().splitlines())
    assert (first["line"], first["input"]) == (2, "not \\xff JSON")
    assert first["error"].startswith("value: is not ")
    assert (second["line"], second["input"]) == (3, lines[2].decode())
    assert all(field in second["error"] for field in ("prompt: ", "; priority: "))

    mended = [lines[0], b'{"prompt": "b"}', b"", lines[3]]
    jobs.write_bytes(b"\n".join(mended))
    again = postback_here(*arguments, env=environment_of(fleet))
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, "postback: 3 of 3 jobs accepted")
    prompts = [json.loads(record.value)["prompt"] for record in records_of(fleet, fleet.topics.requests())]
    assert (sorted(prompts), invalid.read_text()) == (["a", "b", "d"], "")


def test_waiting_ends_with_0_when_every_job_succeeded(fleet: KafkaSettings, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    given = b"".join(b'{"prompt": "q%d", "job_id": "j%d"}\n' % (number, number) for number in range(50))
    with answering(fleet, {}):
        done = postback_here("submit", "-", "--wait", "--results", results, env=environment_of(fleet), given=given)
    assert (done.returncode, done.stderr) == (0, "postback: 50 of 50 jobs accepted, 50 succeeded\n")
    answered = [json.loads(line) for line in results.read_text().splitlines()]
    assert sorted(result["job_id"] for result in answered) == sorted(f"j{number}" for number in range(50))


def test_results_of_an_earlier_run_stay_until_a_job_is_accepted(fleet: KafkaSettings, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text("of an earlier run, and longer than what comes" * 100)
    nowhere = fleet.model_copy(update={"topic_prefix": "nowhere."})
    arguments = ("submit", "-", "--wait", "--results", results)
    assert postback_here(*arguments, env=environment_of(nowhere), given=b'{"prompt": "q"}').returncode == 1
    assert results.read_text() == "of an earlier run, and longer than what comes" * 100
    with answering(fleet, {}):
        assert postback_here(*arguments, env=environment_of(fleet), given=b'{"prompt": "q"}').returncode == 0
    [line] = results.read_text().splitlines()
    assert json.loads(line)["outcome"] == "succeeded"


def test_openai_lines_are_answered_whatever_model_they_name_once_the_registry_has_an_alias(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why not?"}], "stop": "not", "top_p": 0.5}
    line = {"custom_id": "row 1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    arguments, env = ("submit", "-", "--wait", "--timeout", "60"), environment_of(fleet_here.kafka)
    worker = fleet_here.worker("w1")
    refused = postback_here(*arguments, env=env, given=json.dumps(line).encode())
    assert refused.returncode == 1
    [said] = [line for line in refused.stderr.splitlines() if line.startswith("postback: line 1 (row 1): job_")]
    assert ' rejected: model_id: no engine of this fleet has the model "gpt-4o-mini"; there is "echo": name one' in said
    assert "`postback submit --model`" in said
    for model in ("any", "echo"):
        instead = postback_here(*arguments, "--model", model, env=env, given=json.dumps(line).encode())
        assert instead.stderr == "postback: 1 of 1 jobs accepted, 1 succeeded\n"
    assert worker.terminate() == 0

    fleet_here.worker("w2", POSTBACK_WORKER__MODELS='{"gpt-4o-mini": null}')
    results = tmp_path / "results.jsonl"
    line["body"] = {**body, "presence_penalty": 1, "temprature": 1}
    answered = postback_here(*arguments, "--results", results, env=env, given=json.dumps(line).encode())
    assert answered.stderr.splitlines() == [
        "postback: line 1: unknown field `body.presence_penalty`, ignored",
        "postback: line 1: unknown field `body.temprature` (did you mean `body.temperature`?), ignored",
        "postback: 1 of 1 jobs accepted, 1 succeeded",
    ]
    assert json.loads(results.read_text())["text"] == "Why "


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (
            [{"prompt": "good"}, {"prompt": "bad", "job_id": "unlucky", "custom_id": "q-2"}],
            ("--tenant", "acme"),
            [
                "postback: line 2 (q-2): unlucky failed: as the test wants it",
                "postback: 2 of 2 jobs accepted, 1 succeeded, 1 failed",
            ],
        ),
        (
            [{"prompt": "bad", "job_id": f"j{number}"} for number in range(25)],
            (),
            [
                "postback: lines 1, 2, 3 and 22 more: failed: as the test wants it",
                "postback: 25 of 25 jobs accepted, 25 failed",
            ],
        ),
        ([{"prompt": "good"}], ("--timeout", "0"), ["postback: 1 of 1 jobs accepted, 1 without a result"]),
    ],
    ids=["one failed", "all failed for one reason", "the time is up"],
)
def test_waiting_ends_with_1_and_the_reasons_when_not_every_job_succeeded(
    fleet: KafkaSettings, lines: list[dict[str, str]], options: tuple[str, ...], said: list[str]
) -> None:
    given = "".join(f"{json.dumps(line)}\n" for line in lines)
    with answering(fleet, {"bad": Outcome.FAILED}) if "--timeout" not in options else nullcontext():
        done = postback_here("submit", "-", "--wait", *options, env=environment_of(fleet), given=given)
    assert (done.returncode, done.stderr.splitlines()) == (1, said)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        (
            {},
            {
                "line 3": "http://other.example:8080: https is required; use https",
                "lines 1, 2": "https://hook.example:9: this port is not allowed; use a port of POSTBACK_EGRESS__PORTS",
            },
        ),
        ({"POSTBACK_ENV": "development", "POSTBACK_EGRESS__PORTS": "9,8080,443"}, {}),
        (
            {"POSTBACK_EGRESS__ALLOW_CALLBACKS": "*.example"},
            {},
        ),
        ({"POSTBACK_ENV": "development"}, {"lines 1, 2": "https://hook.example:9: this port is not allowed"}),
    ],
    ids=["as by default", "other ports, in development", "listed names", "in development"],
)
def test_callbacks_that_a_worker_of_this_environment_refuses_are_warned_of_and_sent(
    settings: dict[str, str], refused: dict[str, str], fleet: KafkaSettings, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    own = "http://other.example:8080/?token=secret"
    jobs.write_text(f'{{"prompt": "a"}}\n{{"prompt": "b"}}\n{{"prompt": "c", "callback_url": "{own}"}}\n')
    arguments = ("submit", str(jobs), "--callback-url", "https://hook.example:9/in?token=secret")
    done = postback_here(*arguments, env=environment_of(fleet, **settings))
    *warnings, last = done.stderr.splitlines()
    assert (done.returncode, last) == (0, "postback: 3 of 3 jobs accepted")
    for lines, reason in refused.items():
        [warning] = [line for line in warnings if line.startswith(f"postback: {lines}: ")]
        assert warning.startswith(f"postback: {lines}: callback_url: {reason}")
    assert len(warnings) == len(refused) + bool(refused)
    assert "secret" not in done.stderr


def on_a_terminal(fleet: KafkaSettings, *options: str, given: bytes, output: bool = True) -> tuple[int, str, bytes]:
    """Submit at a terminal, where `output` is shown too; return the status, the terminal's text, and the output."""
    shown_by, terminal = pty.openpty()
    try:
        done = subprocess.run(
            (POSTBACK, "submit", "-", *options),
            env=environment_of(fleet),
            input=given,
            stdout=terminal if output else subprocess.PIPE,
            stderr=terminal,
            timeout=60,
        )
        return done.returncode, os.read(shown_by, 65536).decode(), done.stdout
    finally:
        os.close(terminal)
        os.close(shown_by)


def test_a_terminal_shows_no_ids_but_how_to_find_those_that_the_lines_do_not_have(
    fleet: KafkaSettings, tmp_path: Path
) -> None:
    hint = "postback: the ids of 1 jobs are not shown here: `--receipt FILE` keeps them, and `postback results --since"
    given = b'{"prompt": "q"}\n{"prompt": "q", "job_id": "mine"}\n'
    for options, hinted in (((), 1), (("--wait", "--timeout", "0"), 1), (("--receipt", str(tmp_path / "r")), 0)):
        status, shown, _ = on_a_terminal(fleet, *options, given=given)
        assert (status, shown.count(hint), "mine" in shown) == (int("--wait" in options), hinted, False)
        assert "2 of 2 jobs accepted" in shown
    status, shown, output = on_a_terminal(fleet, given=b'{"prompt": "q", "job_id": "piped"}', output=False)
    assert (status, "piped" in shown, output) == (0, False, b"piped\n")


def test_waiting_on_a_terminal_shows_the_answers_above_the_bars(fleet: KafkaSettings) -> None:
    lines = [{"prompt": "good", "job_id": "j1", "custom_id": "q-1"}, {"prompt": "bad", "job_id": "j2"}, {"prompt": "a"}]
    with answering(fleet, {"bad": Outcome.FAILED}):
        status, shown, _ = on_a_terminal(fleet, "--wait", given="\n".join(map(json.dumps, lines)).encode())
    assert status == 1
    assert "line 1 (q-1)  j1  succeeded  0 sources\r\n    42\r\n" in shown
    assert "line 2  j2  failed  0 sources\r\n    as the test wants it\r\n" in shown
    assert "postback: line 2: j2 failed: as the test wants it\r\n" in shown
    assert "ids of" not in shown  # the terminal has shown the answer of the job without an id


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (["absent.jsonl"], b"", "absent.jsonl: No such file or directory"),
        (["-"], b"\n", "standard input holds no job; nothing was sent"),
        (
            ["-", "--model", "a model"],
            b"{}",
            "--model: is not a name of 1 to 256 characters of printable ASCII without spaces",
        ),
        (["-", "--callback-url", "ftp://x"], b"{}", "--callback-url: is not an http or https URL without credentials"),
        (
            ["-", "--tenant", "a b"],
            b'{"prompt": "q"}',
            "--tenant: 1 to 63 letters, digits, `_` or `-`, a letter or digit first",
        ),
        (["-", "--timeout", "5"], b"", "--timeout is for --wait, and nothing was sent"),
        (["-", "--results", "results.jsonl"], b"", "--results is for --wait, and nothing was sent"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(arguments: list[str], given: bytes, said: str, tmp_path: Path) -> None:
    done = postback_here("submit", *arguments, env=environment_of(), given=given)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"postback: {said}\n")


def test_a_check_reports_sendable_jobs_or_mistakes_and_needs_no_kafka(tmp_path: Path) -> None:
    jobs, receipt = tmp_path / "jobs.jsonl", tmp_path / "receipt.jsonl"
    env = environment_of(KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    arguments = ("submit", str(jobs), "--receipt", str(receipt), "--check")
    jobs.write_text('{"prompt": "a", "callback_url": "http://hook.example/"}\n{"prompt": "b"}\n')
    done = postback_here(*arguments, env=env)
    warned, *_, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout, last) == (0, "", "postback: 2 jobs can be sent; nothing was sent")
    assert warned == "postback: line 1: callback_url: http://hook.example: https is required; use https"
    assert list(tmp_path.iterdir()) == [jobs]

    assert postback(*arguments[:-1], env=env).returncode == 1  # the sending fails, and the receipt stays
    jobs.write_text(f'{jobs.read_text()}{{"prompt": "c"}}\n')
    written = receipt.read_text().replace('"accepted":null', '"accepted":true', 1)
    receipt.write_text(written)
    done = postback_here(*arguments, env=env)
    assert done.stderr.splitlines()[0] == f"postback: 1 of 3 jobs are accepted already, as {receipt} says"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "postback: 2 jobs can be sent; nothing was sent")

    for line, said in (('{"prompt": 1}', f"{jobs}:4: prompt: "), ("", "--receipt ")):
        jobs.write_text(f"{jobs.read_text()}{line}\n" if line else '{"prompt": "another"}\n')
        done = postback_here(*arguments, env=env)
        assert (done.returncode, done.stderr.startswith(f"postback: {said}")) == (2, True)
        assert done.stderr.endswith("; nothing was sent\n")
    assert (receipt.read_text(), sorted(tmp_path.iterdir())) == (written, [jobs, receipt])
    done = postback_here(*arguments, "--wait", env=env)
    said = "postback: --check sends nothing, so there is nothing to --wait for\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_check_names_each_line_whose_callback_only_looks_like_a_url_with_its_field_and_its_fix(
    tmp_path: Path,
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    urls = ["https://a.example/", "https://[2001:db8::1::2]/hook", "https://[cafe.cc:443]/", "https://10.1.2.3/"]
    bad = [f'{{"prompt": "x", "callback_url": "{url}"}}' for url in [*urls, *["https://[1::2::3]/"] * 5]]
    jobs.write_text("\n\n" + "\n".join(bad))
    done = postback_here("submit", str(jobs), "--check", env=environment_of(KafkaSettings()))
    first, second, third, hint, last = [line.removeprefix("postback: ") for line in done.stderr.splitlines()]
    unreadable = "callback_url: not a URL that can be read; correct its host, port or brackets"
    assert first == f"lines 4, 7, 8 and 3 more: {unreadable}"
    assert second.startswith("line 5: callback_url: this spelling of an address is not allowed; write four decimal")
    assert third.startswith("line 6: callback_url: https://10.1.2.3: the address is not public; use a public address")
    assert hint.startswith("workers with the settings of this shell would reject 8 jobs")
    assert (done.returncode, last) == (0, "9 jobs can be sent; nothing was sent")


def test_a_setting_that_is_refused_is_named_and_not_shown() -> None:
    env = environment_of(POSTBACK_KAFKA__PARTITIONS="hunter2")
    done = postback_here("submit", "-", env=env, given=b'{"prompt": "q"}')
    assert done.returncode == 2
    assert done.stderr.startswith("postback: POSTBACK_KAFKA__PARTITIONS: ")
    assert "hunter2" not in done.stderr
