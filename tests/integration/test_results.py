"""`postback results` on a real broker: results that outlive the submitter, and jobs without a result."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from kafka import KafkaProducer

from cli.devkit.broker import Broker
from cli.operations import unanswered
from producers import results
from producers.errors import RequestRefused
from producers.results import ResultsReader
from producers.scan import Scanner
from schemas import topics
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from tests.fleet_here import FleetHere
from tests.integration.answering_jobs import answering
from tests.postback_command import POSTBACK, environment_of, line_of, postback_here, started
from tests.product import eventually
from workers.stage.progress import done_offsets

pytestmark = pytest.mark.broker

CHAT = {"model": "small", "messages": [{"role": "user", "content": "Why?"}]}
LINES: list[dict[str, object]] = [
    {"prompt": "good", "job_id": "mine"},
    {"prompt": "bad", "custom_id": "b"},
    {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": CHAT},
    {"custom_id": "d", "method": "POST", "url": "/v1/responses", "body": {"input": "Why?"}},
]


@dataclass(frozen=True)
class Submitted:
    """Four jobs of acme with their results and receipt, and one result of another tenant."""

    env: dict[str, str]
    receipt: Path
    ids: list[str]


@pytest.fixture(scope="module")
def submitted(module_fleet: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    env, receipt = environment_of(module_fleet), tmp_path_factory.mktemp("submitted") / "receipt.jsonl"
    given = "\n".join(map(json.dumps, LINES)).encode()
    with answering(module_fleet, {"bad": Outcome.FAILED}), ResultsReader(module_fleet) as reader:
        done = postback_here("submit", "-", "--tenant", "acme", "--receipt", receipt, env=env, given=given)
        theirs = postback_here("submit", "-", "--tenant", "globex", env=env, given=b'{"prompt": "q", "job_id": "mine"}')
        assert (done.returncode, theirs.returncode) == (0, 0), done.stderr
        seen = 0
        while seen < 5:
            seen += len(list(reader.poll()))
    yield Submitted(env, receipt, done.stdout.split())


def test_a_receipt_collects_the_results_of_its_jobs(submitted: Submitted, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    output.write_text("of an earlier run, and longer than what comes" * 100)
    done = postback_here("results", "--ids", str(submitted.receipt), "--output", str(output), env=submitted.env)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        f"postback: line 2 (b): {submitted.ids[1]} failed: as the test wants it",
        "postback: 4 of 4 jobs have a result, 3 succeeded, 1 failed",
    ]
    found = {result["job_id"]: result for result in map(json.loads, output.read_text().splitlines())}
    assert set(found) == set(submitted.ids)
    assert found["mine"]["text"] == "42"


def test_on_demand_results_come_in_the_order_of_the_lines_and_a_failed_job_is_an_error(
    submitted: Submitted, tmp_path: Path
) -> None:
    entries = submitted.receipt.read_text().splitlines(keepends=True)
    receipt = tmp_path / "receipt.jsonl"
    for order in (entries, entries[::-1]):
        receipt.write_text("".join(order))
        for more in ((), ("--wait",)):
            asked = ("results", "--ids", str(receipt), "--ordered", "--fail-on-error", *more)
            done = postback_here(*asked, env=submitted.env)
            ids = [json.loads(entry)["job_id"] for entry in order]
            assert [json.loads(line)["job_id"] for line in done.stdout.splitlines()] == ids
            assert (done.returncode, done.stderr.splitlines()[-1]) == (
                1,
                "postback: 4 of 4 jobs have a result, 3 succeeded, 1 failed",
            )
    well = postback_here("results", "--id", "mine", "--tenant", "acme", "--fail-on-error", env=submitted.env)
    assert well.returncode == 0
    receipt.write_text(f"{entries[0]}{json.dumps({**json.loads(entries[0]), 'job_id': 'large', 'accepted': False})}\n")
    refused = ("results", "--ids", str(receipt), "--fail-on-error", "--status")
    assert postback_here(*refused, env=submitted.env).returncode == 1


def test_openai_lines_have_the_shape_that_each_line_asked_for(submitted: Submitted) -> None:
    done = postback_here("results", "--ids", str(submitted.receipt), "--openai", env=submitted.env)
    lines = {line["custom_id"]: line["response"] for line in map(json.loads, done.stdout.splitlines())}
    assert {name: response["status_code"] for name, response in lines.items()} == {
        None: 200,
        "b": 500,
        "c": 200,
        "d": 200,
    }
    assert lines["c"]["body"]["choices"][0]["message"]["content"] == "42"
    assert lines["d"]["body"]["output"][0]["content"][0]["text"] == "42"


def test_with_a_file_for_errors_unsuccessful_jobs_go_there_as_in_an_openai_batch(
    submitted: Submitted, tmp_path: Path
) -> None:
    output, errors = tmp_path / "output.jsonl", tmp_path / "errors.jsonl"
    errors.write_text("of an earlier run, and longer than what comes" * 100)
    named = ("results", "--ids", str(submitted.receipt), "--openai", "--errors", str(errors))
    for more in ((), ("--wait",)):
        done = postback_here(*named, "--output", str(output), *more, env=submitted.env)
        assert (done.returncode, done.stdout) == (0, "")
        well, not_well = (list(map(json.loads, file.read_text().splitlines())) for file in (output, errors))
        assert {line["custom_id"]: line["response"]["status_code"] for line in not_well} == {"b": 500}
        assert {line["custom_id"]: line["response"]["status_code"] for line in well} == {None: 200, "c": 200, "d": 200}
    assert len(postback_here(*named, env=submitted.env).stdout.splitlines()) == 3


def test_ids_are_read_from_standard_input_too_and_named_one_by_one(submitted: Submitted) -> None:
    ids = submitted.ids
    plain = postback_here(
        "results", "--ids", "-", "--tenant", "acme", env=submitted.env, given=f"{ids[2]}\n\n{ids[3]}\n".encode()
    )
    assert {json.loads(line)["job_id"] for line in plain.stdout.splitlines()} == {ids[2], ids[3]}
    named = postback_here("results", "--id", "mine", env=submitted.env)
    assert (named.returncode, named.stderr) == (
        1,
        "postback: 0 of 1 jobs have a result, 1 without a result (1 never seen)\n",
    )
    theirs = postback_here("results", "--id", "mine", "--tenant", "globex", env=submitted.env)
    assert [json.loads(line)["job_id"] for line in theirs.stdout.splitlines()] == ["mine"]


def test_the_status_counts_done_and_open_jobs(submitted: Submitted, tmp_path: Path) -> None:
    entries = [json.loads(line) for line in submitted.receipt.read_text().splitlines()]
    more = [
        {**entries[0], "line": 5, "job_id": "open"},
        {**entries[0], "line": 6, "job_id": "large", "accepted": False},
    ]
    receipt = tmp_path / "receipt.jsonl"
    receipt.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries + more))
    done = postback_here("results", "--ids", str(receipt), "--status", env=submitted.env)
    said = "4 of 5 jobs have a result, 3 succeeded, 1 failed, 1 without a result (1 never seen)"
    said += "; 1 more were not accepted\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, said, "")


def test_a_time_collects_all_results_of_a_tenant(submitted: Submitted) -> None:
    done = postback_here("results", "--since", "-1h", "--tenant", "acme", "--status", env=submitted.env)
    assert (done.returncode, done.stdout) == (0, "4 results, 3 succeeded, 1 failed\n")
    none = postback_here("results", "--since", "2099-01-01", "--tenant", "acme", "--status", env=submitted.env)
    assert (none.returncode, none.stdout) == (0, "0 results\n")


def settle(
    fleet: KafkaSettings,
    job_id: str,
    tenant: str = "acme",
    outcome: Outcome = Outcome.SUCCEEDED,
    partition: int | None = None,
) -> None:
    """Write one result, as a worker does."""
    producer = KafkaProducer(bootstrap_servers=fleet.bootstrap_servers)
    result = Result(job_id=job_id, custom_id=f"line-{job_id}", outcome=outcome, text="42", created_at=1)
    headers = [(topics.TENANT, tenant.encode())]
    producer.send(fleet.topics.results, write_result(result), job_id.encode(), headers, partition)
    producer.close()


@contextmanager
def waiting(*arguments: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `postback results --wait` in the background."""
    process = started("results", "--wait", *arguments, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_waiting_writes_each_result_as_it_is_settled_and_ends_with_the_last_of_those_named(
    module_fleet: KafkaSettings,
) -> None:
    named = ("--id", "w1", "--id", "w2", "--id", "w3", "--tenant", "acme")
    settle(module_fleet, "w1")
    with waiting(*named, env=environment_of(module_fleet)) as process:
        assert json.loads(line_of(process.stdout))["job_id"] == "w1"  # this result was there before the command started
        settle(module_fleet, "w3", "globex")
        settle(module_fleet, "w2")
        assert json.loads(line_of(process.stdout))["job_id"] == "w2"
        assert process.poll() is None
        settle(module_fleet, "w3")
        left, said = process.communicate(timeout=60)
    assert [json.loads(line)["job_id"] for line in left.splitlines()] == ["w3"]
    assert (process.returncode, said) == (0, "postback: 3 of 3 jobs have a result, 3 succeeded\n")


def test_after_a_redrive_the_newest_result_of_each_job_counts_and_has_the_one_line(
    fleet: KafkaSettings, tmp_path: Path
) -> None:
    jobs = [f"r{number}" for number in range(6)]
    # Both partitions get old results, so that the partition that is read last has some too.
    for number, job in enumerate(jobs):
        settle(fleet, job, outcome=Outcome.REJECTED, partition=number % 2)
    for number, job in enumerate(jobs):
        settle(fleet, job, partition=1 - number % 2)
    settle(fleet, jobs[0], outcome=Outcome.FAILED, partition=2)
    named = [argument for job in jobs for argument in ("--id", job)]
    output, errors = tmp_path / "output.jsonl", tmp_path / "errors.jsonl"
    files = ("--openai", "--output", str(output), "--errors", str(errors))
    for which in (("--since", "-1h"), named, [*named, "--wait"]):
        asked = ("results", *which, "--tenant", "acme")
        status = postback_here(*asked, "--status", env=environment_of(fleet))
        of = "6 of 6 jobs have a result" if "--id" in which else "6 results"
        assert (status.returncode, status.stdout) == (0, f"{of}, 5 succeeded, 1 failed\n")
        assert postback_here(*asked, *files, env=environment_of(fleet)).returncode == 0
        well, not_well = (
            [json.loads(line)["custom_id"] for line in file.read_text().splitlines()] for file in (output, errors)
        )
        assert (sorted(well), not_well) == ([f"line-{job}" for job in jobs[1:]], ["line-r0"])


def lines_beside(output: Path) -> int:
    """Count the lines of a file that is not whole yet."""
    return sum(part.read_text().count("\n") for part in output.parent.glob(f".{output.name}.*"))


def test_a_job_that_is_answered_again_while_others_are_waited_for_has_one_line_in_the_end(
    module_fleet: KafkaSettings, tmp_path: Path
) -> None:
    output, errors = tmp_path / "output.jsonl", tmp_path / "errors.jsonl"
    files = ("--openai", "--output", str(output), "--errors", str(errors))
    named = ("--id", "again", "--id", "last", "--tenant", "acme")
    settle(module_fleet, "again", outcome=Outcome.REJECTED, partition=0)
    with waiting(*named, *files, env=environment_of(module_fleet)) as process:
        eventually(lambda: lines_beside(errors) == 1, 60, "it is not written")
        settle(module_fleet, "again", partition=1)
        eventually(lambda: lines_beside(output) == 1, 60, "the newer one is not written")
        settle(module_fleet, "last")
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "postback: 2 of 2 jobs have a result, 2 succeeded\n")
    assert errors.read_text() == ""
    lines = map(json.loads, output.read_text().splitlines())
    assert [line["custom_id"] for line in lines] == ["line-again", "line-last"]


def test_waiting_ends_at_the_timeout_after_all_existing_results_and_shows_its_progress_on_a_terminal(
    submitted: Submitted, tmp_path: Path
) -> None:
    output = tmp_path / "output.jsonl"
    named = ("--ids", str(submitted.receipt), "--id", "open", "--openai", "--output", str(output))
    shown_by, terminal = pty.openpty()
    try:
        done = subprocess.run(
            (POSTBACK, "results", *named, "--wait", "--timeout", "0"), env=submitted.env, stderr=terminal, timeout=60
        )
        shown = os.read(shown_by, 65536)
    finally:
        os.close(terminal)
        os.close(shown_by)
    assert done.returncode == 1
    assert b"answered" in shown
    assert b"4 of 5 jobs have a result, 3 succeeded, 1 failed, 1 without a result\r\n" in shown
    lines = [json.loads(line)["response"]["status_code"] for line in output.read_text().splitlines()]
    assert sorted(lines) == [200, 200, 200, 500]


def test_waiting_ends_at_once_if_all_results_exist_and_the_status_is_printed_then(submitted: Submitted) -> None:
    done = postback_here("results", "--ids", str(submitted.receipt), "--wait", "--status", env=submitted.env)
    said = "4 of 4 jobs have a result, 3 succeeded, 1 failed\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    late = ("results", "--ids", str(submitted.receipt), "--wait", "--since", "2099-01-01", "--timeout", "0", "--status")
    assert postback_here(*late, env=submitted.env).stdout == "0 of 4 jobs have a result, 4 without a result\n"


def test_ctrl_c_ends_waiting_in_one_line_and_received_results_stay(submitted: Submitted) -> None:
    with waiting("--ids", str(submitted.receipt), "--id", "open", env=submitted.env) as process:
        came = [json.loads(line_of(process.stdout))["job_id"] for _ in submitted.ids]
        process.send_signal(signal.SIGINT)
        left, said = process.communicate(timeout=60)
    assert (sorted(came), left) == (sorted(submitted.ids), "")
    told = "postback: stopped; 4 of 5 jobs have a result, 3 succeeded, 1 failed, 1 without a result\n"
    assert (process.returncode, said) == (130, told)


def test_the_timeout_ends_waiting_for_a_frozen_broker_too(
    make_fleet: Callable[[str], KafkaSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_STALL_SECONDS", 1.0)
    with Broker.start() as broker:
        fleet = make_fleet(broker.bootstrap_servers)
        settle(fleet, "kept")
        with ResultsReader(fleet, 0) as reader:
            broker.pause()
            with pytest.raises(RequestRefused, match="Kafka delivered none of its records for 1 s"):
                assert list(chain(*reader.follow(Deadline.after(SystemClock(), 0)))) == []
            broker.resume()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say which: --ids, --id or --since"),
        (("--id", "a job"), "ID: 1 to 256 characters of printable ASCII without spaces"),
        (("--ids", "absent"), "absent: No such file or directory"),
        (("--since", "yesterday"), "--since: not a time: ISO 8601"),
        (("--since", "-1h", "--wait"), "--wait is for jobs that are named: --ids or --id"),
        (("--id", "a", "--timeout", "5"), "--timeout is for --wait"),
        (("--since", "-1h", "--ordered"), "--ordered is for jobs that are named: --ids or --id"),
        (("--id", "a", "--errors", "e"), "--errors is for --openai"),
        (
            ("--id", "a", "--openai", "--output", "./e", "--errors", "e"),
            "--errors e: is also the file of --output; name another file",
        ),
    ],
    ids=[
        "nothing",
        "no id",
        "no file",
        "no time",
        "nobody to wait for",
        "no waiting",
        "no order",
        "no lines of OpenAI",
        "one file",
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(arguments: tuple[str, ...], said: str) -> None:
    done = postback_here("results", *arguments, env=environment_of())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"postback: {said}")


def test_lines_that_name_no_job_and_a_receipt_of_another_tenant_are_refused(
    submitted: Submitted, tmp_path: Path
) -> None:
    wrong = tmp_path / "ids"
    wrong.write_text("fine\n{}\n")
    done = postback_here("results", "--ids", str(wrong), env=environment_of())
    assert (done.returncode, done.stderr) == (
        2,
        f"postback: --ids {wrong}: line 2 is neither a job's id nor a receipt's line\n",
    )
    done = postback_here("results", "--ids", str(submitted.receipt), "--tenant", "globex", env=submitted.env)
    assert (done.returncode, done.stderr) == (2, "postback: --tenant: the receipt is of acme\n")


# -- jobs that wait, and jobs that were never seen -----------------------------------------------------------------


def test_a_waiting_job_and_one_that_was_never_seen_are_told_apart(
    fleet_here: FleetHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_here.submit({"job_id": f"job_{number}", "prompt": "Why?"} for number in range(8))
    fleet_here.put([b'{"job_id": "job_bad", "prompt": 7}', b"\xff"])
    env = environment_of(fleet_here.kafka)

    def told(*command: str) -> tuple[int, str]:
        done = postback_here(*command, env=env)
        return done.returncode, done.stderr.removeprefix("postback: ")

    named = ("results", "--id", "job_5", "--id", "job_bad", "--id", "nobody")
    none = "0 of 3 jobs have a result, 3 without a result"
    assert told(*named) == (1, f"{none} (2 still waiting, 1 never seen)\n")
    assert told(*named, "--tenant", "acme") == (1, f"{none} (3 never seen)\n")
    timeline = ("endpoints", "deliveries")
    assert told(*timeline, "job_5") == (1, "job_5 still waits for its answer, so it has no callback yet\n")
    assert told(*timeline, "nobody") == (1, "nobody was never seen: no lane and no kept result has it\n")
    monkeypatch.setattr(unanswered, "LOOK_SECONDS", 0.0)
    assert told(*timeline, "nobody")[1].startswith("nobody was not seen within 0 s of reading: no lane")
    monkeypatch.undo()

    fleet_here.worker("w1")
    fleet_here.wait_for_results(10, 60)
    fleet_here.wait_until_nothing_is_left()
    with Scanner(fleet_here.kafka) as scanner:
        look = unanswered.look_into_lanes(fleet_here.kafka, scanner, done_offsets, {"job_5"})
    assert look == unanswered.Look(frozenset(), is_whole=True)
