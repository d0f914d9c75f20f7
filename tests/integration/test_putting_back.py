"""`dead-letters redrive` and `replay` put records back: in portions, no faster than asked, after a yes, and once."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cli.operations.dead_letters import REDRIVE, DeadLetters, LetterFilter
from cli.operations.put_back import PutBack
from producers.scan import Scanner
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.integration.put_backs import REDRIVES, REPLAYS, assert_each_once, called, due, fill
from tests.postback_command import POSTBACK, environment_of, postback_here

pytestmark = pytest.mark.broker

CLOCK = SystemClock()
SIZES = {0: 3, 1: 1200}
"""Records by partition: the first poll reads all of partition 0, and partition 1 takes three polls."""
ALL = sum(SIZES.values())


# -- portions ----------------------------------------------------------------------------------------------------------


def test_the_same_ranges_are_read_whole_as_often_as_they_are_asked_for(fleet: KafkaSettings) -> None:
    fill(fleet, SIZES, letters=False)
    with Scanner(fleet) as scanner:
        ranges = scanner.ranges(fleet.topics.results)
        first, second = ([record.place for record in scanner.read(ranges)] for _ in range(2))
    assert Counter(place.partition for place in first) == SIZES
    assert sorted(first) == sorted(second)


@pytest.mark.parametrize("command", [REPLAYS, REDRIVES], ids=" ".join)
def test_all_records_are_put_back_that_were_counted(fleet: KafkaSettings, command: tuple[str, ...]) -> None:
    fill(fleet, SIZES, letters=command is REDRIVES)
    done = postback_here(*command, "--rate", "100000", "--yes", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    assert f"{ALL} of {ALL} put back" in done.stderr
    assert_each_once(fleet, ALL)


def test_a_few_are_tried_first_and_a_next_run_puts_back_the_rest(fleet: KafkaSettings) -> None:
    fill(fleet, SIZES, letters=True)
    env = environment_of(fleet)
    looked = postback_here(*REDRIVES, "--limit", "10", "--dry-run", "--json", env=env)
    tried = postback_here(*REDRIVES, "--limit", "10", "--yes", "--json", env=env)
    for done, count in ((looked, 0), (tried, 10)):
        assert done.returncode == 0, done.stderr
        assert f"--limit: 10 of them are put back, and {ALL - 10} are left as they are" in done.stderr
        told = json.loads(done.stdout)
        assert (told["redriven"], sum(each["count"] for each in told["matching"])) == (count, ALL)
    assert called(fleet).total() == 10
    rest = postback_here(*REDRIVES, "--limit", str(ALL), "--rate", "100000", "--yes", env=env)
    assert f"{ALL - 10} of {ALL - 10} put back" in rest.stderr
    assert_each_once(fleet, ALL)


def test_a_limit_bounds_the_results_that_are_called_back(fleet: KafkaSettings) -> None:
    fill(fleet, SIZES, letters=False)
    asked = (*REPLAYS, "--id", "job_0_1", "--id", "job_1_7", "--limit", "1", "--yes")
    done = postback_here(*asked, env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    assert "--limit: 1 of them are put back, and 1 are left as they are" in done.stderr
    assert "1 of 1 put back" in done.stderr
    assert called(fleet).total() == 1


@pytest.mark.parametrize("command", [REPLAYS, REDRIVES], ids=" ".join)
def test_records_are_put_back_no_faster_than_asked(fleet: KafkaSettings, command: tuple[str, ...]) -> None:
    fill(fleet, {0: 40}, letters=command is REDRIVES)
    done = postback_here(*command, "--rate", "10", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    times = [message.timestamp()[1] for message in due(fleet)]
    # The last records follow three seconds after the start, of which writing the first records may have taken one.
    assert (len(times), max(times) - min(times) >= 2000) == (40, True)


# -- the question at a terminal ----------------------------------------------------------------------------------------


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

    def answer(self, text: str, shown: str) -> int:
        """Type the answer, and wait until this text is shown; return the exit status."""
        os.write(self.screen, text.encode() + b"\n")
        self.see(shown)
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


def test_at_a_terminal_no_result_is_called_back_without_a_yes(fleet: KafkaSettings) -> None:
    jobs = fill(fleet, {0: 3}, letters=False)
    for answer, said, status, wanted in (("n", "nothing was done", 1, []), ("y", "3 of 3 put back", 0, jobs)):
        with at_a_terminal(*REPLAYS, env=environment_of(fleet)) as asked:
            assert "3 back" in asked.shown
            assert asked.answer(answer, said) == status
        assert sorted(called(fleet).elements()) == wanted


def test_an_operator_who_only_looks_puts_back_nothing_and_ends_no_running_redrive(fleet: KafkaSettings) -> None:
    fill(fleet, {0: 3}, letters=True)
    env, told = environment_of(fleet), list[int]()

    def look(done: int) -> None:
        told.append(done)
        if done > 1:
            return
        with at_a_terminal(*REDRIVES, env=env) as asked:
            assert asked.answer("n", "nothing was done") == 1
        for nothing_to_do in ((*REDRIVES, "--reason", "none", "--yes"), (*REPLAYS, "--undelivered", "--yes")):
            assert postback_here(*nothing_to_do, env=env).returncode == 0
        assert called(fleet).total() == 1

    with PutBack(fleet, REDRIVE) as back, Scanner(fleet) as scanner:
        DeadLetters(fleet, scanner, CLOCK).redrive(LetterFilter(), back, 1, look)
    assert told == [1, 2, 3]
    assert_each_once(fleet, 3)


def test_a_letter_that_another_run_puts_back_before_the_answer_is_reported_and_not_put_back_again(
    fleet: KafkaSettings,
) -> None:
    fill(fleet, {0: 3}, letters=True, tenants=("acme", "globex"))
    env = environment_of(fleet)
    with at_a_terminal(*REDRIVES, env=env) as asked:
        assert "Put these 3 back?" in asked.shown
        assert postback_here(*REDRIVES, "--tenant", "globex", "--yes", env=env).returncode == 0
        assert asked.answer("y", "2 of 2 put back") == 0
        assert "3 were counted before the question, and 2 after it: another process has acted meanwhile" in asked.shown
    assert_each_once(fleet, 3)
