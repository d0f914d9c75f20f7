"""The question before a put-back blocks no other run, and other runs' changes before the answer are respected."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from confluent_kafka import Producer

from devkit.committed import committed_records
from operators.dead_letters import REDRIVE, DeadLetters, LetterFilter
from operators.put_back import PutBack
from producers.scan import Scanner
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.postback_command import POSTBACK, environment_of, postback_here

pytestmark = pytest.mark.broker

CLOCK = SystemClock()


@dataclass
class Asked:
    """A command that waits for an answer at a terminal."""

    process: subprocess.Popen[bytes]
    screen: int
    shown: str = ""

    def see(self, text: str) -> None:
        """Wait until the text is on the screen."""
        while text not in self.shown:
            assert select.select([self.screen], [], [], 60)[0], self.shown
            self.shown += os.read(self.screen, 65536).decode()

    def answer(self, text: str) -> int:
        """Type the answer; return the exit status."""
        os.write(self.screen, text.encode() + b"\n")
        return self.process.wait(60)


@contextmanager
def at_a_terminal(*arguments: str, env: Mapping[str, str]) -> Iterator[Asked]:
    screen, terminal = os.openpty()
    with subprocess.Popen([POSTBACK, *arguments], env=env, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        asked = Asked(process, screen)
        try:
            asked.see("[y/N]")
            yield asked
        finally:
            process.kill()
            os.close(terminal)
            os.close(screen)


@pytest.fixture
def given_up(fleet: KafkaSettings) -> KafkaSettings:
    """A fleet with three dead letters of callbacks, two of acme and one of globex."""
    producer = Producer(fleet.client_config())
    for number, tenant in enumerate(("acme", "acme", "globex")):
        headers = {"tenant": tenant, "webhook-id": f"msg_{number}", "callback-url": "https://hooks.example/"}
        headers |= {"reason": "timeout", "source-topic": fleet.topics.results}
        headers |= {"source-partition": "0", "source-offset": str(number)}
        producer.produce(fleet.topics.dead_letters, b"{}", str(number), 0, headers=list(headers.items()))
    assert producer.flush(20) == 0
    return fleet


def called(fleet: KafkaSettings) -> list[bytes]:
    tier = fleet.topics.tier(0.3)
    with Scanner(fleet) as scanner:
        scanner.wait_until_settled([tier])
    return sorted(record.key() or b"" for record in committed_records(fleet.client_config(), tier))


def test_an_operator_who_only_looks_ends_no_running_redrive(given_up: KafkaSettings) -> None:
    env, told = environment_of(given_up), list[int]()

    def look(done: int) -> None:
        told.append(done)
        if done > 1:
            return
        with at_a_terminal("dead-letters", "redrive", env=env) as asked:
            assert asked.answer("n") == 1
        for nothing_to_do in (
            ("dead-letters", "redrive", "--reason", "none", "--yes"),
            ("replay", "--tenant", "acme", "--undelivered", "--yes"),
        ):
            assert postback_here(*nothing_to_do, env=env).returncode == 0

    with PutBack(given_up, REDRIVE) as back, Scanner(given_up) as scanner:
        DeadLetters(given_up, scanner, CLOCK).redrive(LetterFilter(), back, 1, look)
    assert told == [1, 2, 3]
    assert called(given_up) == [b"0", b"1", b"2"]


def test_a_letter_that_another_run_puts_back_before_the_answer_is_reported_and_not_put_back_again(
    given_up: KafkaSettings,
) -> None:
    env = environment_of(given_up)
    with at_a_terminal("dead-letters", "redrive", env=env) as asked:
        assert "Put these 3 back?" in asked.shown
        assert postback_here("dead-letters", "redrive", "--tenant", "globex", "--yes", env=env).returncode == 0
        os.write(asked.screen, b"y\n")
        asked.see("2 of 2 put back")
        assert "3 were counted before the question, and 2 after it: another process has acted meanwhile" in asked.shown
    assert called(given_up) == [b"0", b"1", b"2"]
