"""`postback submit` on a real broker in all of its outcomes, with receipts and resumed runs, and through the client."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.consumer.fetcher import ConsumerRecord

from cli.devkit.broker import Broker
from producers.client import Client, SubmitError
from producers.errors import TopicMissing
from producers.results import ResultsReader
from schemas.affinity import shard_of
from schemas.codec import Origin, read_job
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.settings import KafkaSettings
from schemas.topics import Lane
from tests.fleet_here import FleetHere
from tests.integration.answering_jobs import answering
from tests.postback_command import POSTBACK, environment_of, line_of, postback, postback_here, started


def records_of(fleet: KafkaSettings, topic: str) -> list[ConsumerRecord]:
    """All records in a topic now."""
    consumer = KafkaConsumer(bootstrap_servers=fleet.bootstrap_servers, group_id=None)
    partitions = [TopicPartition(topic, number) for number in range(fleet.partitions)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends, found = consumer.end_offsets(partitions), []
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        found += [record for records in consumer.poll(timeout_ms=200).values() for record in records]
    consumer.close()
    return found


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


# -- through the client --------------------------------------------------------------------------------------------

JOBS = 300


def test_jobs_arrive_stamped_and_spread_over_the_tenants_shard(fleet: KafkaSettings) -> None:
    told: list[tuple[int, SubmitError | None]] = []
    with Client(fleet) as client:
        jobs = (Job(prompt=f"q{n}") for n in range(JOBS))
        receipt = client.submit(jobs, tenant="acme", on_answer=lambda index, error: told.append((index, error)))
    assert (receipt.accepted, receipt.errors) == (JOBS, [])
    assert told == [(index, None) for index in range(JOBS)]
    records = records_of(fleet, fleet.topics.requests())
    assert {record.key.decode() for record in records} == set(receipt.job_ids)
    assert len(set(receipt.job_ids)) == JOBS == len(records)
    assert {record.partition for record in records} == set(shard_of("acme", fleet.partitions))
    received = [read_job(r.value, r.headers, Origin("t", r.partition, r.offset), r.timestamp) for r in records]
    assert {job.tenant for job in received} == {"acme"}
    assert {job.job_id for job in received} == set(receipt.job_ids)
    # The client, which has no collector, adds no trace header: the workers begin the traces.
    assert {name for record in records for name, _ in record.headers} == {"tenant"}


def test_a_jobs_own_id_is_kept_and_the_bulk_lane_is_another_topic(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        receipt = client.submit([Job(prompt="q", job_id="mine")], lane="bulk")
    [record] = records_of(fleet, fleet.topics.requests(bulk=True))
    assert receipt.job_ids == ["mine"]
    assert json.loads(record.value) == {"job_id": "mine", "prompt": "q"}
    assert records_of(fleet, fleet.topics.requests()) == []


def test_a_job_that_is_too_large_is_refused_and_stops_none_of_the_others(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        receipt = client.submit([Job(prompt="a"), Job(prompt="x" * 600_000, job_id="large"), Job(prompt="b")])
    assert receipt.accepted == 2
    assert [(error.index, error.job_id, error.perhaps) for error in receipt.errors] == [(1, "large", False)]
    assert "larger than 524288 bytes" in receipt.errors[0].reason


def test_jobs_near_the_limit_are_accepted(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        receipt = client.submit([Job(prompt="x" * 524_000, job_id=f"j{n}") for n in range(4)])
    assert (receipt.job_ids, receipt.errors) == (["j0", "j1", "j2", "j3"], [])


def test_a_missing_topic_is_an_error_before_anything_is_sent(fleet: KafkaSettings) -> None:
    with Client(fleet.model_copy(update={"topic_prefix": "nowhere."})) as client, pytest.raises(TopicMissing):
        client.submit([Job(prompt="q")])


def test_results_that_were_there_before_and_aborted_ones_are_not_seen(fleet: KafkaSettings) -> None:
    with Client(fleet) as client:
        client.submit([Job(prompt="early")])
    with ResultsReader(fleet) as early, answering(fleet, {}):
        while not (seen := list(early.poll())):
            pass
        assert [settled.result.outcome for settled in seen] == [Outcome.SUCCEEDED]
        with ResultsReader(fleet) as late, Client(fleet) as client:
            receipt = client.submit([Job(prompt="late")], tenant="acme")
            while not (seen := list(late.poll())):
                pass
    assert [(settled.tenant, settled.result.job_id) for settled in seen] == [("acme", receipt.job_ids[0])]


# -- receipts: the job of each line, and a run that resumes another ------------------------------------------------
UNKNOWN = "not known to be accepted: Kafka did not acknowledge the job in time"


def test_a_receipt_says_which_line_became_which_job(fleet: KafkaSettings, tmp_path: Path) -> None:
    batch = {"custom_id": "b", "method": "POST", "url": "/v1/responses", "body": {"input": "q"}}
    lines = ['{"prompt": "a"}', "", json.dumps(batch), '{"prompt": "c", "job_id": "mine"}']
    receipt = tmp_path / "receipt.jsonl"
    arguments = ("submit", "-", "--tenant", "acme", "--receipt", receipt)
    done = postback_here(*arguments, env=environment_of(fleet), given="\n".join(lines).encode())
    assert (done.returncode, done.stderr) == (0, "postback: 3 of 3 jobs accepted\n")
    entries = [json.loads(line) for line in receipt.read_text().splitlines()]
    assert [(entry["line"], entry.get("custom_id"), entry.get("url")) for entry in entries] == [
        (1, None, None),
        (3, "b", "/v1/responses"),
        (4, None, None),
    ]
    assert {(entry["tenant"], entry["accepted"]) for entry in entries} == {("acme", True)}
    assert [entry["job_id"] for entry in entries] == done.stdout.splitlines()
    assert entries[2]["job_id"] == "mine"
    assert {record.key.decode() for record in records_of(fleet, fleet.topics.requests())} == set(
        done.stdout.splitlines()
    )
    assert list(tmp_path.iterdir()) == [receipt]


def test_a_second_run_with_a_receipt_sends_unaccepted_jobs_under_the_same_ids_and_waits_for_all(
    fleet: KafkaSettings, tmp_path: Path
) -> None:
    given = b'{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n'
    receipt, results = tmp_path / "receipt.jsonl", tmp_path / "results.jsonl"
    nowhere = fleet.model_copy(update={"topic_prefix": "nowhere."})
    assert postback_here("submit", "-", "--receipt", receipt, env=environment_of(nowhere), given=given).returncode == 1
    entries = [json.loads(line) for line in receipt.read_text().splitlines()]
    assert [entry["accepted"] for entry in entries] == [None, None, None]
    ids = [entry["job_id"] for entry in entries]
    with Client(fleet) as client:
        client.submit([Job(prompt="a", job_id=ids[0])])
    receipt.write_text("".join(json.dumps({**entry, "accepted": entry["line"] == 1}) + "\n" for entry in entries))

    with answering(fleet, {}):
        wait_for_results(fleet, 1)
        arguments = ("submit", "-", "--receipt", receipt, "--wait", "--results", results)
        done = postback_here(*arguments, env=environment_of(fleet), given=given)
    assert (done.returncode, done.stdout.split()) == (0, ids)
    assert done.stderr.splitlines() == [
        f"postback: 1 of 3 jobs are accepted already, as {receipt} says",
        "postback: 3 of 3 jobs accepted, 3 succeeded",
    ]
    assert sorted(record.key.decode() for record in records_of(fleet, fleet.topics.requests())) == sorted(ids)
    assert {json.loads(line)["job_id"] for line in results.read_text().splitlines()} == set(ids)

    again = postback_here("submit", "-", "--receipt", receipt, env=environment_of(fleet), given=given)
    assert again.stderr.splitlines()[-1] == "postback: 3 of 3 jobs accepted"
    assert len(records_of(fleet, fleet.topics.requests())) == 3


def test_a_job_of_unknown_acceptance_is_looked_up_before_it_is_sent_again(fleet: KafkaSettings, tmp_path: Path) -> None:
    jobs, receipt = tmp_path / "jobs.jsonl", tmp_path / "receipt.jsonl"
    jobs.write_text("".join(f'{{"prompt": "q{number}"}}\n' for number in range(4)))
    arguments = ("submit", str(jobs), "--receipt", str(receipt), "--tenant", "acme")
    nowhere = fleet.model_copy(update={"topic_prefix": "nowhere."})
    assert postback_here(*arguments, env=environment_of(nowhere)).returncode == 1
    ids = [json.loads(line)["job_id"] for line in receipt.read_text().splitlines()]
    with Client(fleet) as client:  # two jobs arrive, in different lanes; a third arrives only for another tenant
        client.submit([Job(prompt="q1", job_id=ids[1])], tenant="acme")
        client.submit([Job(prompt="q3", job_id=ids[3])], tenant="acme", lane="bulk")
        client.submit([Job(prompt="q0", job_id=ids[0])], tenant="globex")

    done = postback_here(*arguments, env=environment_of(fleet))
    assert (done.returncode, done.stdout.split()) == (0, ids)
    assert done.stderr.splitlines() == [
        "postback: 2 jobs of an earlier run that were not known to be accepted are in Kafka",
        "postback: 4 of 4 jobs accepted",
    ]
    records = [record for bulk in (False, True) for record in records_of(fleet, fleet.topics.requests(bulk=bulk))]
    assert sorted(r.key.decode() for r in records if ("tenant", b"acme") in r.headers) == sorted(ids)


def test_of_two_runs_with_one_receipt_at_once_the_second_sends_nothing_until_the_first_has_ended(
    fleet: KafkaSettings, tmp_path: Path
) -> None:
    jobs, receipt = tmp_path / "jobs.jsonl", tmp_path / "receipt.jsonl"
    jobs.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    arguments, env = ("submit", str(jobs), "--receipt", str(receipt)), environment_of(fleet)
    first = started(*arguments, "--wait", env=env)  # no worker answers, so this run keeps waiting
    try:
        ids = [line_of(first.stdout), line_of(first.stdout)]
        second = postback_here(*arguments, env=env)
        said = f"postback: --receipt {receipt}: another run uses this receipt; nothing was sent\n"
        assert (second.returncode, second.stdout, second.stderr) == (2, "", said)
    finally:
        first.kill()
        first.communicate()
    third = postback_here(*arguments, env=env)
    assert (third.returncode, third.stdout.split()) == (0, ids)
    assert sorted(record.key.decode() for record in records_of(fleet, fleet.topics.requests())) == sorted(ids)
    assert sorted(tmp_path.iterdir()) == [jobs, receipt]


FREEZING = """
import os, signal, sys
from cli.main import run
from producers import client

client.DELIVERY_SECONDS = 3.5
write_job, written = client.write_job, []

def freezing(job):
    written.append(job)
    if len(written) == 4:  # the producer knows the topic by now, and some records are on their way
        os.kill(int(sys.argv.pop()), signal.SIGSTOP)
    return write_job(job)

client.write_job = freezing
run()
"""


def test_jobs_that_a_frozen_broker_does_not_acknowledge_are_in_kafka_once_after_the_next_run(
    make_fleet: Callable[[str], KafkaSettings], tmp_path: Path
) -> None:
    jobs, receipt = tmp_path / "jobs.jsonl", tmp_path / "receipt.jsonl"
    jobs.write_text("".join(f'{{"prompt": "q{number}"}}\n' for number in range(8)))
    arguments = ("submit", str(jobs), "--receipt", str(receipt))
    with Broker.start() as broker:
        fleet = make_fleet(broker.bootstrap_servers)
        frozen = subprocess.run(
            [sys.executable, "-c", FREEZING.replace("sys.argv.pop()", repr(broker.pids[0])), *arguments],
            env=environment_of(fleet, POSTBACK_KAFKA__EXTRA__SOCKET_TIMEOUT_MS="3000"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        broker.resume()
        entries = [json.loads(line) for line in receipt.read_text().splitlines()]
        unknown = [entry for entry in entries if entry["accepted"] is None]
        assert unknown
        lines, more = ", ".join(str(entry["line"]) for entry in unknown[:3]), len(unknown) - 3
        several = f"lines {lines} and {more} more: " if more > 0 else f"lines {lines}: "
        one = f"line {lines}: {unknown[0]['job_id']} is "
        assert frozen.stderr.splitlines() == [
            f"postback: {one if len(unknown) == 1 else several}{UNKNOWN}",
            f"postback: {8 - len(unknown)} of 8 jobs accepted",
        ]

        done = postback_here(*arguments, env=environment_of(fleet))
        assert (done.returncode, done.stdout.split()) == (0, [entry["job_id"] for entry in entries])
        keys = [record.key.decode() for record in records_of(fleet, fleet.topics.requests())]
        assert sorted(keys) == sorted(entry["job_id"] for entry in entries)


def test_a_job_that_a_broker_refuses_for_good_was_not_accepted(fleet: KafkaSettings) -> None:
    set_on(fleet, fleet.topics.requests(), "max.message.bytes", "1000")
    given = json.dumps({"job_id": "large", "prompt": "".join(map(str, range(10_000)))}).encode()
    done = postback_here("submit", "-", env=environment_of(fleet), given=given)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("postback: line 1: large was not accepted: ")


def set_on(fleet: KafkaSettings, topic: str, name: str, value: str) -> None:
    """Change a topic's setting, and wait until the broker applies the setting."""
    admin = KafkaAdminClient(bootstrap_servers=fleet.bootstrap_servers)
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, {name: value})
    admin.alter_configs([resource], raise_on_unknown=False)  # a new topic has no settings yet
    while admin.describe_configs([resource], config_filter="all")["topic"][topic][name]["value"] != value:
        pass
    admin.close()


def wait_for_results(fleet: KafkaSettings, count: int) -> None:
    """Wait until a reader of committed records sees this many results."""
    seen = 0
    with ResultsReader(fleet, 0) as reader:
        while seen < count:
            seen += len(list(reader.poll()))


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (b'{"prompt": "b"}\n', (), "line 1 is another job, or another tenant's, than the receipt says"),
        (b'{"prompt": "a"}\n', ("--tenant", "acme"), "line 1 is another job, or another tenant's"),
        (b'\n{"prompt": "a"}\n', (), "the receipt has a line 1, which holds no job"),
    ],
    ids=["another job", "another tenant", "fewer lines"],
)
def test_the_receipt_of_another_submission_is_refused(
    given: bytes, options: tuple[str, ...], said: str, fleet: KafkaSettings, tmp_path: Path
) -> None:
    receipt = tmp_path / "receipt.jsonl"
    env = environment_of(fleet)
    assert postback_here("submit", "-", "--receipt", receipt, env=env, given=b'{"prompt": "a"}\n').returncode == 0
    before = receipt.read_text()
    done = postback_here("submit", "-", "--receipt", receipt, *options, env=env, given=given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"postback: --receipt {receipt}: {said}")
    assert done.stderr.endswith("give this submission a receipt of its own; nothing was sent\n")
    assert (receipt.read_text(), len(records_of(fleet, fleet.topics.requests()))) == (before, 1)


def test_a_file_that_is_no_receipt_is_left_as_it_is_and_nothing_is_sent(fleet: KafkaSettings, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "private"}\n')
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "private"}\n')
    no_receipt = "line 1 is no line of a receipt: give this submission a receipt of its own; nothing was sent"
    for receipt, said in ((jobs, "is also the file of the jobs; name another file"), (other, no_receipt)):
        done = postback_here("submit", jobs, "--receipt", receipt, env=environment_of(fleet))
        assert (done.returncode, done.stderr) == (2, f"postback: --receipt {receipt}: {said}\n")
        assert receipt.read_text() == '{"prompt": "private"}\n'
    done = postback_here("submit", jobs, "--receipt", tmp_path / "absent" / "receipt", env=environment_of(fleet))
    assert (done.returncode, done.stderr) == (
        2,
        f"postback: --receipt {tmp_path}/absent/receipt: No such file or directory\n",
    )
    assert records_of(fleet, fleet.topics.requests()) == []
