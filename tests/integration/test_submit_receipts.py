"""`postback submit --receipt`: the job of each line, and a run that resumes another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from cli.devkit.broker import Broker
from producers.client import Client
from producers.results import ResultsReader
from schemas.job import Job
from schemas.settings import KafkaSettings
from tests.integration.answering_jobs import answering
from tests.integration.submitted import records_of
from tests.postback_command import environment_of, line_of, postback_here, started

pytestmark = pytest.mark.broker
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
