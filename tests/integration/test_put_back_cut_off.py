"""A redrive that is cut off by Ctrl-C or a frozen broker ends with one line, and loses and doubles nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from bench.committed import committed_records
from cli.devkit.broker import Broker
from cli.operations.dead_letters import REDRIVE, DeadLetters, LetterFilter
from cli.operations.put_back import NotPutBack, PutBack
from producers.scan import Scanner
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.integration.put_backs import REDRIVES, assert_each_once, fill
from tests.postback_command import environment_of, postback_here, started
from tests.product import eventually

pytestmark = pytest.mark.broker

CLOCK = SystemClock()
LETTERS = 1000


@pytest.fixture(scope="module")
def own() -> Iterator[Broker]:
    """A broker for this module, which tests may freeze."""
    with Broker.start() as broker:
        yield broker


@pytest.fixture
def given_up(own: Broker, make_fleet: Callable[[str], KafkaSettings]) -> KafkaSettings:
    """A fleet with LETTERS dead letters of callbacks."""
    fleet = make_fleet(own.bootstrap_servers)
    fill(fleet, {0: LETTERS}, letters=True)
    return fleet


def assert_a_next_run_puts_back_the_rest(fleet: KafkaSettings) -> None:
    done = postback_here(*REDRIVES, "--rate", "100000", "--yes", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    assert_each_once(fleet, LETTERS)


def test_ctrl_c_in_the_middle_of_a_batch_ends_it_with_a_line_and_the_status_of_a_shell(
    own: Broker, given_up: KafkaSettings, clean_processes: None
) -> None:
    def put_back() -> int:
        return len(committed_records(given_up.client_config(), given_up.topics.tier(0.3)))

    with started(*REDRIVES, "--rate", "100", "--yes", env=environment_of(given_up)) as process:
        eventually(lambda: put_back() >= 100, 60, "nothing is put back")
        own.pause()
        try:
            time.sleep(2)  # by then the next batch is in flight, without an answer
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            own.resume()
    last = said.splitlines()[-1]
    assert last.startswith("postback: stopped; ")
    assert last.endswith(f" of {LETTERS} are put back, and another run goes on with the rest")
    assert process.returncode == 130
    assert_a_next_run_puts_back_the_rest(given_up)


def test_a_frozen_broker_ends_the_command_in_time_with_the_rest_named(own: Broker, given_up: KafkaSettings) -> None:
    with Scanner(given_up) as scanner, PutBack(given_up, REDRIVE, answer_seconds=3) as back:
        told, frozen_at = list[int](), list[float]()

        def freeze(done: int) -> None:
            told.append(done)
            frozen_at.append(CLOCK.monotonic())
            own.pause()

        try:
            with pytest.raises(NotPutBack, match="The batches before it are put back"):
                DeadLetters(given_up, scanner, CLOCK).redrive(LetterFilter(), back, 100, freeze)
            # One of our limits must have ended the run. The client itself allows 30 s for a request, and any time for a
            # commit.
            assert CLOCK.monotonic() - frozen_at[0] < 25
        finally:
            own.resume()
        assert told == [100]
    assert_a_next_run_puts_back_the_rest(given_up)
