"""`replay` and `dead-letters redrive` on a real broker: counts, records, identity, portions and pace."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from confluent_kafka import Message, Producer

from bench.committed import committed_records
from cli.operations.dead_letters import REDRIVE, DeadLetters, LetterFilter
from cli.operations.endpoints import put_endpoints
from cli.operations.put_back import PutBack
from cli.operations.replay import Counts, Replay
from producers.scan import Scanner, StoredPlace
from producers.selection import Selection
from schemas.codec import write_result
from schemas.endpoint import EndpointRecord, EndpointState
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.integration.put_backs import REDRIVES, REPLAYS, assert_each_once, called, due, fill
from tests.messages import headers_of
from tests.postback_command import POSTBACK, environment_of, postback_here

pytestmark = pytest.mark.broker

HOOK = "https://hooks.example/in?token=secret"
OTHER = "https://other.example:8443/in"


@dataclass(frozen=True)
class Settled:
    """A result in `model_results`."""

    job_id: str
    partition: int
    tenant: str = "acme"
    url: str | None = HOOK
    commit: bool = True


EARLY = [Settled("early", 0), Settled("aborted", 0, commit=False)]
LATE = [
    Settled("late", 0),
    Settled("elsewhere", 1, url=OTHER),
    Settled("stored", 1, url=None),
    Settled("theirs", 2, tenant="globex"),
]


@dataclass(frozen=True)
class Kept:
    """A fleet with the results EARLY before the time `between_ms`, and LATE after it."""

    fleet: KafkaSettings
    between_ms: int


def settle(fleet: KafkaSettings, one: Settled, producer: Producer) -> None:
    result = Result(job_id=one.job_id, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
    headers = {"tenant": one.tenant, "webhook-id": f"msg_{one.job_id}", "job-id": one.job_id}
    headers |= {"callback-url": one.url} if one.url else {}
    producer.begin_transaction()
    producer.produce(
        fleet.topics.results, write_result(result), one.job_id, one.partition, headers=list(headers.items())
    )
    producer.flush(30)
    if one.commit:
        producer.commit_transaction(30)
    else:
        producer.abort_transaction(30)


@pytest.fixture
def kept(fleet: KafkaSettings) -> Iterator[Kept]:
    producer = Producer({**fleet.client_config(), "transactional.id": f"{fleet.topic_prefix}test"})
    producer.init_transactions(30)
    for one in EARLY:
        settle(fleet, one, producer)
    time.sleep(0.005)
    between_ms = int(time.time() * 1000)
    time.sleep(0.005)
    for one in LATE:
        settle(fleet, one, producer)
    with Scanner(fleet) as scanner:
        scanner.wait_until_settled([fleet.topics.results])
    yield Kept(fleet, between_ms)


def waiting(fleet: KafkaSettings) -> dict[str, Message]:
    """The records of the smallest tier, by job."""
    tier = next(iter(fleet.topics.tiers.values()))
    with Scanner(fleet) as scanner:
        # Wait, because Kafka confirms a commit before every reader sees its records.
        scanner.wait_until_settled([tier])
    found = committed_records(fleet.client_config(), tier)
    return {headers_of(message)["job-id"].decode(): message for message in found}


def found(kept: Kept, selection: Selection) -> set[str]:
    """The jobs that a selection would put back; asserts that the selection's count agrees."""
    with Scanner(kept.fleet) as scanner:
        replay = Replay(kept.fleet, scanner, selection, SystemClock())
        records = [record for group in replay.returning(Counts()) for record in group]
        assert replay.count().count == len(records)
    return {dict(record.headers)["job-id"].decode() for record in records}


def test_results_that_match_every_option_are_put_back(kept: Kept) -> None:
    acme, at = {"early", "late", "elsewhere"}, kept.between_ms
    table = [
        (Selection(tenant="acme"), acme),
        (Selection(tenant="acme", since_ms=at), acme - {"early"}),
        (Selection(tenant="acme", until_ms=at), {"early"}),
        (Selection(tenant="acme", since_ms=at, until_ms=at), set()),
        (Selection(tenant="acme", ids=frozenset({"early", "msg_elsewhere", "theirs"})), {"early", "elsewhere"}),
        (
            Selection(tenant="acme", places=frozenset({StoredPlace(0, 0), StoredPlace(1, 0), StoredPlace(2, 0)})),
            {"early", "elsewhere"},
        ),
        (Selection(tenant="acme", places=frozenset({StoredPlace(0, 10**9), StoredPlace(9, 0)})), set()),
        (Selection(endpoint=HOOK), {"early", "late", "theirs"}),
        (Selection(endpoint="https://OTHER.example:8443"), {"elsewhere"}),
        (Selection(endpoint="https://hooks.example/in"), set()),
        (Selection(endpoint=HOOK, tenant="globex"), {"theirs"}),
    ]
    assert [found(kept, selection) for selection, _ in table] == [wanted for _, wanted in table]


def test_results_for_a_disabled_endpoint_stay_until_it_is_enabled(kept: Kept) -> None:
    acme = Selection(tenant="acme")
    put_endpoints(kept.fleet, [EndpointRecord(tenant="acme", url=HOOK, state=EndpointState.DISABLED, at=1)])
    assert found(kept, acme) == {"elsewhere"}
    assert found(kept, Selection(tenant="globex")) == {"theirs"}
    done = postback_here("replay", "--tenant", "acme", "--dry-run", env=environment_of(kept.fleet))
    assert "2 match too and have an endpoint that is disabled: `postback endpoints enable` comes first" in done.stderr

    put_endpoints(kept.fleet, [EndpointRecord(tenant="acme", url=HOOK, state=EndpointState.ENABLED, at=2)])
    assert found(kept, acme) == {"early", "late", "elsewhere"}


def test_a_replayed_result_is_the_same_event_due_at_once_with_all_attempts_again(kept: Kept) -> None:
    done = postback_here("replay", "--tenant", "globex", "--rate", "1000", "--yes", env=environment_of(kept.fleet))

    assert (done.returncode, done.stdout) == (0, "")
    [message] = waiting(kept.fleet).values()
    results = committed_records(kept.fleet.client_config(), kept.fleet.topics.results)
    [result] = [record for record in results if record.key() == b"theirs"]
    headers = headers_of(message)
    assert (message.key(), message.value()) == (result.key(), result.value())
    put_back_at = headers.pop("not-before")
    assert int(put_back_at) <= message.timestamp()[1]
    assert (headers.pop("written"), headers.pop("result-at")) == (put_back_at, put_back_at)
    assert headers.pop("left") == b"0"
    assert headers == headers_of(result)
    assert len(results) == len(EARLY + LATE) - 1


def test_a_dry_run_counts_by_origin_and_changes_nothing(kept: Kept) -> None:
    done = postback_here("replay", "--tenant", "acme", "--since", "-2h", "--dry-run", env=environment_of(kept.fleet))

    assert (done.returncode, waiting(kept.fleet)) == (0, {})
    assert done.stderr.splitlines() == [
        "postback: 3 results match and have a callback",
        "postback:   2 to https://hooks.example",
        "postback:   1 to https://other.example:8443",
        "postback: 1 match too and cannot be called back: they have no callback URL, or Postback did not write them",
    ]


def test_a_named_result_that_is_missing_is_reported_and_the_rest_is_called_back_again(kept: Kept) -> None:
    asked = ["--tenant", "acme", "--id", "late", "--id", "aborted", "--offset", "0:4", "--offset", "3:1"]
    done = postback_here("replay", *asked, env=environment_of(kept.fleet))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "postback: no kept result that fits: aborted, 3:1"
    assert set(waiting(kept.fleet)) == {"late"}


def test_an_id_is_enough_if_only_one_tenant_uses_it(kept: Kept) -> None:
    done = postback_here("replay", "--id", "msg_theirs", "--id", "elsewhere", "--yes", env=environment_of(kept.fleet))
    assert (done.returncode, set(waiting(kept.fleet))) == (0, {"theirs", "elsewhere"})


def test_an_id_of_two_tenants_needs_the_tenant(kept: Kept) -> None:
    producer = Producer({**kept.fleet.client_config(), "transactional.id": f"{kept.fleet.topic_prefix}test"})
    producer.init_transactions(30)
    settle(kept.fleet, replace(EARLY[0], tenant="globex"), producer)
    name = EARLY[0].job_id
    for asked in (["--id", name], ["--id", name, "--endpoint", "https://hooks.example"]):
        done = postback_here("replay", *asked, "--yes", env=environment_of(kept.fleet))
        refused = f"postback: {name} is an id of several tenants; name the tenant with --tenant: acme, globex\n"
        assert (done.returncode, done.stderr) == (2, refused)
    assert waiting(kept.fleet) == {}
    done = postback_here("replay", "--id", name, "--tenant", "globex", "--yes", env=environment_of(kept.fleet))
    assert (done.returncode, set(waiting(kept.fleet))) == (0, {name})


def test_a_named_result_that_cannot_be_called_back_is_a_failure_with_the_reason(kept: Kept) -> None:
    put_endpoints(kept.fleet, [EndpointRecord(tenant="acme", url=HOOK, state=EndpointState.DISABLED, at=1)])
    asked = ["--tenant", "acme", "--id", "late", "--id", "elsewhere", "--id", "stored"]
    for more in ("--dry-run", "--yes"):
        done = postback_here("replay", *asked, more, env=environment_of(kept.fleet))
        assert done.returncode == 1
        said = "postback: not called back: late (endpoint_disabled), stored (no_callback)"
        assert done.stderr.splitlines()[-1] == said
    assert set(waiting(kept.fleet)) == {"elsewhere"}
    done = postback_here("replay", "--tenant", "acme", "--offset", "0:0", env=environment_of(kept.fleet))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "postback: not called back: 0:0 (endpoint_disabled)",
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "say which results: --tenant, --endpoint, --id or --offset"),
        (["--tenant", "a b"], "--tenant: "),
        (["--tenant", "a", "--since", "yesterday"], "--since: not a time: ISO 8601 as in "),
        (
            ["--endpoint", "hooks.example"],
            "--endpoint: a whole URL, as https://hooks.example/in, or its origin, https://",
        ),
        (["--endpoint", "https:///in"], "--endpoint: a whole URL"),
        (["--tenant", "a", "--offset", "12"], "--offset: a partition and an offset of model_results, as in 3:1024"),
    ],
)
def test_an_impossible_selection_is_refused_before_kafka_is_asked(asked: list[str], said: str) -> None:
    done = postback_here("replay", *asked, env=environment_of(None))

    assert done.returncode == 2
    assert said in done.stderr


# -- putting back: in portions, no faster than asked, after a yes, and once ----------------------------------------

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
