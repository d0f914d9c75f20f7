"""`postback results` on a real broker: what somebody collects who submitted jobs and walked away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from answering_jobs import answering
from postback_command import environment_of, postback, postback_here

from producers.results import ResultsReader
from schemas.result import Outcome
from schemas.settings import KafkaSettings

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
    """Four jobs of acme with their results, one of somebody else's, and the receipt of the four."""

    env: dict[str, str]
    receipt: Path
    ids: list[str]


@pytest.fixture(scope="module")
def submitted(module_fleet: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitted]:
    env, receipt = environment_of(module_fleet), tmp_path_factory.mktemp("submitted") / "receipt.jsonl"
    given = "\n".join(map(json.dumps, LINES)).encode()
    with answering(module_fleet, {"bad": Outcome.FAILED}), ResultsReader(module_fleet) as reader:
        done = postback("submit", "-", "--tenant", "acme", "--receipt", receipt, env=env, given=given)
        theirs = postback("submit", "-", "--tenant", "globex", env=env, given=b'{"prompt": "q", "job_id": "mine"}')
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


def test_ids_are_read_from_standard_input_too_and_named_one_by_one(submitted: Submitted) -> None:
    ids = submitted.ids
    plain = postback(
        "results", "--ids", "-", "--tenant", "acme", env=submitted.env, given=f"{ids[2]}\n\n{ids[3]}\n".encode()
    )
    assert {json.loads(line)["job_id"] for line in plain.stdout.splitlines()} == {ids[2], ids[3]}
    named = postback_here("results", "--id", "mine", env=submitted.env)
    assert (named.returncode, named.stderr) == (1, "postback: 0 of 1 jobs have a result, 1 without a result\n")
    theirs = postback_here("results", "--id", "mine", "--tenant", "globex", env=submitted.env)
    assert [json.loads(line)["job_id"] for line in theirs.stdout.splitlines()] == ["mine"]


def test_the_status_counts_what_is_done_and_what_is_open(submitted: Submitted, tmp_path: Path) -> None:
    entries = [json.loads(line) for line in submitted.receipt.read_text().splitlines()]
    more = [
        {**entries[0], "line": 5, "job_id": "open"},
        {**entries[0], "line": 6, "job_id": "large", "accepted": False},
    ]
    receipt = tmp_path / "receipt.jsonl"
    receipt.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries + more))
    done = postback_here("results", "--ids", str(receipt), "--status", env=submitted.env)
    said = "4 of 5 jobs have a result, 3 succeeded, 1 failed, 1 without a result; 1 more were not accepted\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, said, "")


def test_a_time_collects_all_results_of_a_tenant(submitted: Submitted) -> None:
    done = postback_here("results", "--since", "-1h", "--tenant", "acme", "--status", env=submitted.env)
    assert (done.returncode, done.stdout) == (0, "4 results, 3 succeeded, 1 failed\n")
    none = postback_here("results", "--since", "2099-01-01", "--tenant", "acme", "--status", env=submitted.env)
    assert (none.returncode, none.stdout) == (0, "0 results\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say which: --ids, --id or --since"),
        (("--id", "a job"), "ID: 1 to 256 characters of printable ASCII without spaces"),
        (("--ids", "absent"), "absent: No such file or directory"),
        (("--since", "yesterday"), "--since: not a time: ISO 8601"),
    ],
    ids=["nothing", "no id", "no file", "no time"],
)
def test_what_is_asked_wrongly_is_one_line_and_status_2(arguments: tuple[str, ...], said: str) -> None:
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
        f"postback: --ids {wrong}: line 2 is neither a job's id nor of a receipt\n",
    )
    done = postback_here("results", "--ids", str(submitted.receipt), "--tenant", "globex", env=submitted.env)
    assert (done.returncode, done.stderr) == (2, "postback: --tenant: the receipt is of acme\n")


def test_what_was_collected_stays_where_the_topic_is_missing(module_fleet: KafkaSettings, tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    output.write_text("kept")
    env = environment_of(module_fleet.model_copy(update={"topic_prefix": "nowhere."}))
    done = postback_here("results", "--since", "-1h", "--output", str(output), env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("postback: the topic nowhere.model_results does not exist")
    assert output.read_text() == "kept"
