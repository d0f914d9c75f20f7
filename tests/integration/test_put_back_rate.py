"""Dead letters and results are put back no faster than asked, and at a terminal only after a yes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import Message, Producer

from devkit.committed import committed_records
from producers.scan import Scanner
from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from tests.messages import key_of
from tests.postback_command import POSTBACK, environment_of, started

pytestmark = pytest.mark.broker

HOOK = "https://hooks.example/in"
COUNT = 40
RATE = 10


def put_results(fleet: KafkaSettings, count: int, **why: str) -> list[str]:
    """Write results, or dead letters if `why` has a reason; return their jobs."""
    producer, kind = Producer(fleet.client_config()), "letter" if why else "result"
    jobs = [f"{kind}-{number}" for number in range(count)]
    for job in jobs:
        result = Result(job_id=job, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
        headers = {names.WEBHOOK_ID: f"msg_{job}", names.JOB_ID: job, names.CALLBACK_URL: HOOK, **why}
        topic = fleet.topics.dead_letters if why else fleet.topics.results
        producer.produce(topic, write_result(result), job, headers=list(headers.items()))
    assert producer.flush(20) == 0
    return jobs


def put_letters(fleet: KafkaSettings, count: int) -> list[str]:
    where = {names.SOURCE_TOPIC: fleet.topics.results, names.SOURCE_PARTITION: "0", names.SOURCE_OFFSET: "0"}
    return put_results(fleet, count, **{names.REASON: "callback_exhausted", names.ATTEMPTS: "10"}, **where)


def stands_in(fleet: KafkaSettings, topic: str) -> list[Message]:
    with Scanner(fleet) as scanner:
        # Wait, because Kafka confirms a commit before every reader sees its records.
        scanner.wait_until_settled([topic])
    return committed_records(fleet.client_config(), topic)


def due(fleet: KafkaSettings) -> list[Message]:
    """Records that were put back, which are in the smallest tier."""
    return stands_in(fleet, fleet.topics.tier(min(fleet.tier_delays_seconds)))


def test_records_are_put_back_no_faster_than_asked(fleet: KafkaSettings) -> None:
    results, letters = put_results(fleet, COUNT), put_letters(fleet, COUNT)
    commands = (("dead-letters", "redrive"), ("replay", "--tenant", "default"))
    with ExitStack() as stack:
        running = [
            stack.enter_context(started(*command, "--rate", str(RATE), env=environment_of(fleet)))
            for command in commands
        ]
        for process in running:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
    at_ms = {key_of(message): message.timestamp()[1] for message in due(fleet)}
    assert len(due(fleet)) == len(at_ms) == 2 * COUNT
    for jobs in (letters, results):
        times = [at_ms[job] for job in jobs]
        # The last records follow three seconds after the start, of which writing the first records may have taken one.
        assert max(times) - min(times) >= 1000 * (COUNT / RATE - 2)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: the person's and the command's."""
    person, command = os.openpty()
    yield person, command
    os.close(command)
    os.close(person)


def at_a_terminal(terminal: tuple[int, int], fleet: KafkaSettings, *arguments: str, answer: str) -> tuple[int, str]:
    """Run a command and answer its question; return the exit status and the question."""
    person, command = terminal
    asked = b""
    with subprocess.Popen(
        [POSTBACK, *arguments], env=environment_of(fleet), stdin=command, stdout=subprocess.DEVNULL, stderr=command
    ) as process:
        try:
            while b"[y/N]" not in asked:
                asked += os.read(person, 65536)
            os.write(person, answer.encode())
            status = process.wait(60)
        finally:
            process.kill()
    return status, (asked + os.read(person, 65536)).decode()


@pytest.mark.parametrize("command", [("dead-letters", "redrive"), ("replay", "--tenant", "default")])
def test_at_a_terminal_nothing_is_put_back_without_a_yes(
    fleet: KafkaSettings, terminal: tuple[int, int], command: tuple[str, ...]
) -> None:
    jobs = put_letters(fleet, 3) if command[0] == "dead-letters" else put_results(fleet, 3)
    status, said = at_a_terminal(terminal, fleet, *command, answer="n\n")
    assert status == 1
    assert "3 back" in said
    assert "postback: nothing was done" in said
    assert due(fleet) == stands_in(fleet, fleet.topics.redriven) == []
    status, said = at_a_terminal(terminal, fleet, *command, answer="y\n")
    assert status == 0, said
    assert sorted(key_of(message) for message in due(fleet)) == jobs
