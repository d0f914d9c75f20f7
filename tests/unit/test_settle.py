"""Settling a batch: the states of a transaction, and its repair."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from tests.unit.settle_rig import Client, WatchedSettler, batch_of, client, landed, repaired
from workers.stage import producer
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.settler import FATAL_ERRORS_ALLOWED, FATAL_PAUSE_SECONDS, IdentityShared, SettlerState
from workers.stage.sweep import AGAIN_SECONDS, SWEEP_PARTITIONS, Layout, LeaderMissing, Sweeps


# -- settle ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def settler() -> WatchedSettler:
    return WatchedSettler()


@pytest.fixture
def partition() -> Partition:
    partition = Partition("requests", 0, 1, 0.0)
    partition.open(Progress(5), 0)
    for offset in (5, 6):
        partition.ledger.take(offset)
    return partition


SWEPT = ["begin", "results[0] sweep", "results[1] sweep", "offsets requests[0]@5", "abort"]
COMMITTED = ["begin", "results[0] output", "offsets requests[0]@6", "commit"]


def settle_each(settler: WatchedSettler, partition: Partition, *offsets: int) -> None:
    """Settle these offsets in transactions of their own."""
    for offset in offsets:
        batch = batch_of(partition, offset)
        settler.settle(batch)
        assert landed(settler) is batch
        partition.settle([offset], batch.progress[partition])


def test_a_topic_is_swept_before_it_is_written_to_and_only_once(settler: WatchedSettler, partition: Partition) -> None:
    repaired(settler)
    settler.settle(batch_of(partition, 5))
    assert settler.state is SettlerState.SWEEPING
    repaired(settler, partition)
    assert client(settler).asked == ["init", *SWEPT]
    settle_each(settler, partition, 5, 6)
    assert client(settler).asked == ["init", *SWEPT, *COMMITTED, *COMMITTED[:2], "offsets requests[0]@7", "commit"]


def test_topics_that_may_be_written_to_are_swept_at_the_start() -> None:
    settler = WatchedSettler(outputs=["results", "not there"])
    repaired(settler)
    assert client(settler).asked == ["init", "begin", "results[0] sweep", "results[1] sweep", "abort"]


def test_offsets_of_partitions_that_were_never_opened_are_swept_once_more(partition: Partition) -> None:
    settler, unopened = WatchedSettler(outputs=["results"]), Partition("requests", 1, 1, 0.0)
    repaired(settler, unopened)
    settler.settle(batch_of(partition, 5))
    assert settler.state is SettlerState.SWEEPING, "a commit would be refused while the group has pending offsets"
    repaired(settler, unopened, partition)
    assert [asked for asked in client(settler).asked if asked.startswith("offsets")] == [
        "offsets requests[1]@0",
        "offsets requests[0]@5",
    ]


def test_a_missing_topic_is_a_failure_with_a_pause_after_it(partition: Partition) -> None:
    settler = WatchedSettler(clock=HandClock())  # with a real clock, the pause may end before the assert
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5, "gone"))
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5, "gone"))
    assert (settler.state, settler.failures, settler.resting) == (SettlerState.ABORTING, 1, True)


def test_nothing_is_held_open_for_a_partition_without_a_leader(partition: Partition) -> None:
    settler = WatchedSettler(clock=HandClock())
    repaired(settler, partition)
    first = client(settler)
    first.sizes["results"] = [1, -1]
    settler.settle(batch_of(partition, 5))
    asked = len(first.asked)
    settler.repair([partition])
    assert (settler.state, settler.resting) == (SettlerState.REBUILDING, True)
    assert set(first.asked[asked:]) <= {"purge"}


def test_a_call_that_is_overdue_is_never_followed_by_its_commit(
    settler: WatchedSettler, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5))
    repaired(settler, partition)
    monkeypatch.setattr(producer, "SEND_SECONDS", -0.9)  # the producer adds a margin of one second
    first = client(settler)
    first.sent.clear()
    settler.settle(batch_of(partition, 5))
    assert settler.carries(partition)
    assert landed(settler) is None
    assert (settler.state, settler.carries(partition)) == (SettlerState.REBUILDING, False)
    asked = len(first.asked)
    first.sent.set()
    while not any(each.startswith("offsets") for each in first.asked[asked:]):
        threading.Event().wait(0.01)
    threading.Event().wait(0.05)
    assert "commit" not in first.asked


def test_a_shared_identity_is_named_and_a_burst_of_fatal_errors_is_none(partition: Partition) -> None:
    """A fatal error comes as another exception if the poll also logs a line; see `TransactionalProducer.poll`.

    A worker once ended after a broker had been frozen for 8 s: three fatal errors came within a second.
    """

    class Fenced(Client):
        def poll(self, timeout: float) -> int:
            super().poll(timeout)
            raise AttributeError("'RootLogger' object has no attribute 'log'")

        def abort_transaction(self, timeout: float) -> None:
            raise KafkaException(KafkaError(KafkaError._FENCED, "another one came", fatal=True))

    clock = HandClock()
    settler, begun = WatchedSettler(Fenced, outputs=["results"], clock=clock), clock.now
    settler.listen()

    def repair_for(seconds: float) -> None:
        while clock.now < begun + seconds:
            settler.repair([partition])
            clock.now += 0.05

    repair_for(FATAL_PAUSE_SECONDS - 1)
    assert len(settler.clients) > FATAL_ERRORS_ALLOWED + 1
    with pytest.raises(IdentityShared, match="POSTBACK_REPLICA"):
        repair_for(60)
    assert clock.now - begun > 3 * FATAL_PAUSE_SECONDS


class Refusing(Client):
    """A client whose next calls of these names fail: with an error that is retriable, or that requires an abort."""

    refused: dict[str, KafkaError]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.refused = {}

    def produce(self, *args: Any, **options: Any) -> None:
        self._refuse("produce")
        super().produce(*args, **options)

    def send_offsets_to_transaction(self, positions: list[Any], metadata: Any, timeout: float) -> None:
        self.sent.wait(10)
        self._refuse("offsets")
        super().send_offsets_to_transaction(positions, metadata, timeout)

    def commit_transaction(self, timeout: float) -> None:
        self._refuse("commit")
        super().commit_transaction(timeout)

    def _refuse(self, call: str) -> None:
        if (error := self.refused.pop(call, None)) is not None:
            raise KafkaException(error)


RETRIABLE = KafkaError(KafkaError._TRANSPORT, "try again", retriable=True)
REFUSED = KafkaError(KafkaError.ILLEGAL_GENERATION, "rebalanced", txn_requires_abort=True)


@pytest.mark.parametrize(
    ("refused", "seen", "asked"),
    [
        ({"produce": REFUSED}, SettlerState.ABORTING, ["begin", "abort"]),
        ({"offsets": REFUSED}, SettlerState.ABORTING, ["begin", "results[0] output", "abort"]),
        ({"offsets": REFUSED}, None, ["begin", "results[0] output", "abort"]),
        ({"commit": RETRIABLE}, SettlerState.COMMITTING, COMMITTED),
        ({}, None, COMMITTED),
        ({}, SettlerState.READY, COMMITTED),
    ],
    ids=["not produced", "to be aborted", "refused while it closes", "to be repeated", "under way", "committed"],
)
def test_a_settler_that_closes_leaves_no_transaction_open(
    refused: dict[str, KafkaError], seen: SettlerState | None, asked: list[str], partition: Partition
) -> None:
    """Readers of the outputs would wait for 5 s, and a commit under way is lost with the process.

    `seen` is the state in which the settler is closed; None means that the transaction is under way until then.
    """

    class Releasing(SystemClock):
        """Lets the offsets through once the settler waits."""

        def sleep(self, seconds: float) -> None:
            client(closing).sent.set()
            super().sleep(seconds)

    closing = WatchedSettler(Refusing, ["results"], Releasing())
    repaired(closing, partition)
    used = client(closing)
    assert isinstance(used, Refusing)
    used.refused = dict(refused)
    before = len(used.asked)
    if seen is None:
        used.sent.clear()
    closing.settle(batch_of(partition, 5))
    if seen is not None:
        landed(closing)
    assert closing.state is (seen or SettlerState.SETTLING)
    closing.close()
    closed = [each for each in used.asked[before:] if each != "purge"]  # another thread purges the client
    used.sent.set()
    assert (closed, len(closing.clients)) == (asked, 1)


class Copied(Client):
    """A client of a cluster with two copies of every partition."""

    copies = 2


def test_topics_with_two_copies_are_written_to_without_a_sweep_and_swept_where_a_transaction_failed(
    partition: Partition,
) -> None:
    outputs = ["results", "letters", "attempts"]
    settler = WatchedSettler(Copied, outputs)
    for topic in outputs:
        client(settler).sizes[topic] = [1, 1]
    repaired(settler, partition)
    offsets = ["begin", "offsets requests[0]@5", "abort"]
    assert client(settler).asked == ["init", *offsets]
    settle_each(settler, partition, 5, 6)
    partition.ledger.take(7)
    client(settler).sizes["letters"] = []
    settler.settle(batch_of(partition, 7, "letters"))
    asked = len(client(settler).asked)
    client(settler).sizes["letters"] = [1, 1]
    repaired(settler, partition)
    swept = ["abort", "begin", "letters[0] sweep", "letters[1] sweep", "offsets requests[0]@7", "abort"]
    assert client(settler).asked[asked:] == swept


def test_a_topic_without_a_leader_delays_only_writes_to_it_and_is_swept_once_it_has_a_leader(
    partition: Partition,
) -> None:
    clock = HandClock()
    settler = WatchedSettler(outputs=["results", "letters"], clock=clock)
    asked = client(settler).asked
    client(settler).sizes["letters"] = [1, -1, 1]
    repaired(settler, partition)
    settle_each(settler, partition, 5)
    assert not [each for each in asked if each.startswith("letters")]
    client(settler).sizes["letters"] = [1, 1, 1]
    settler.listen()
    before = settler.state
    clock.now += AGAIN_SECONDS
    settler.listen()
    assert (before, settler.state) == (SettlerState.READY, SettlerState.SWEEPING)
    repaired(settler, partition)
    assert [each for each in asked if each.startswith("letters")] == [f"letters[{n}] sweep" for n in range(3)]
    settler.listen()
    clock.now += AGAIN_SECONDS
    assert settler.state is SettlerState.READY


def test_many_partitions_are_swept_in_bounded_steps_and_the_offsets_with_the_last_step(
    partition: Partition,
) -> None:
    settler = WatchedSettler(outputs=["results"])
    client(settler).sizes["results"] = [1] * (2 * SWEEP_PARTITIONS + 1)
    repaired(settler, partition)
    asked = client(settler).asked
    ends = [at for at, each in enumerate(asked) if each == "abort"]
    steps = [asked[start + 1 : end] for start, end in zip([0, *ends], ends, strict=False)]
    assert [len(step) - 1 for step in steps] == [SWEEP_PARTITIONS, SWEEP_PARTITIONS, 2]
    assert steps[-1][-1] == "offsets requests[0]@5"
    assert len({each for step in steps for each in step if each.endswith("sweep")}) == 2 * SWEEP_PARTITIONS + 1


def test_a_sweep_that_fails_begins_anew_with_the_next_producer(partition: Partition) -> None:
    """The failed step may itself have left leftovers, and another topic may have come under doubt meanwhile."""

    class Many(Client):
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            self.sizes["results"] = [1] * (2 * SWEEP_PARTITIONS)

        def abort_transaction(self, timeout: float) -> None:
            super().abort_transaction(timeout)
            if len(sweeping.clients) == 1 and self.asked.count("abort") == 2:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    sweeping = WatchedSettler(Many, ["results"])
    repaired(sweeping, partition)
    first, second = ({each for each in one.asked if each.endswith("sweep")} for one in sweeping.clients)
    assert len(first) == 2 * SWEEP_PARTITIONS
    assert second == first


@pytest.mark.parametrize(("copies", "doubted"), [(1, {"a", "b"}), (2, {"a"})])
def test_a_failure_casts_doubt_on_topics_with_one_copy_and_on_others_only_if_it_wrote_to_them(
    copies: int, doubted: set[str]
) -> None:
    sweeps = Sweeps(["a", "b"])
    sweeps.plan({topic: Layout(2, copies) for topic in "ab"})
    sweeps.done(sweeps.step(0))
    sweeps.doubt(["a"])
    assert sweeps.owed == doubted


def test_a_step_of_a_sweep_is_half_as_large_after_each_of_the_first_three_failures() -> None:
    sweeps = Sweeps(["a"])
    sweeps.plan({"a": Layout(2 * SWEEP_PARTITIONS, 1)})
    assert [SWEEP_PARTITIONS // len(sweeps.step(failures)) for failures in (0, 1, 2, 3, 10)] == [1, 2, 4, 8, 8]


def test_a_topic_that_a_failed_transaction_wrote_to_is_swept_although_it_had_no_leader_in_the_sweep_before() -> None:
    sweeps, led = Sweeps(["a"]), Layout(2, 2)
    sweeps.plan({"a": led})
    sweeps.done([])
    sweeps.doubt(["a"])
    sweeps.plan({"a": Layout(2, 2, is_led=False)})
    sweeps.done([])
    sweeps.plan({"a": led})
    assert sweeps.step(0) == [("a", 0), ("a", 1)]


TOPICS = ["a", "b", "c"]
LAYOUTS = st.builds(Layout, st.sampled_from([0, 1, 3, SWEEP_PARTITIONS + 3]), st.integers(1, 2), st.booleans())


class Sweeping(RuleBasedStateMachine):
    """Sweeps compared with a naive model; `rests` are partitions that may hold a transaction without its end marker."""

    @initialize(
        layouts=st.fixed_dictionaries(dict.fromkeys(TOPICS, LAYOUTS)), at_start=st.sets(st.sampled_from(TOPICS))
    )
    def begin(self, layouts: dict[str, Layout], at_start: set[str]) -> None:
        self.layouts, self.sweeps = layouts, Sweeps(at_start)
        self.rests = {place for topic in TOPICS if layouts[topic].copies == 1 for place in self.places(topic)}

    def places(self, topic: str) -> list[tuple[str, int]]:
        return [(topic, number) for number in range(self.layouts[topic].partitions)]

    @rule(topic=st.sampled_from(TOPICS), is_led=st.booleans())
    def leaders_change(self, topic: str, is_led: bool) -> None:
        self.layouts[topic] = Layout(self.layouts[topic].partitions, self.layouts[topic].copies, is_led)

    @rule(topics=st.sets(st.sampled_from(TOPICS), min_size=1), fails=st.booleans())
    def write(self, topics: set[str], fails: bool) -> None:
        if self.sweeps.need(topics):
            return
        assert not {topic for topic, _ in self.rests} & topics
        if fails:
            doubtful = topics | {topic for topic in TOPICS if self.layouts[topic].copies == 1}
            self.rests |= {place for topic in doubtful for place in self.places(topic)}
            self.sweeps.doubt(topics)

    @rule(failures=st.integers(0, 10), breaks_off=st.booleans())
    def sweep(self, failures: int, breaks_off: bool) -> None:
        try:
            self.sweeps.plan({topic: self.layouts[topic] for topic in self.sweeps.owed})
        except LeaderMissing as missing:
            assert not self.layouts[missing.topic].is_led
            return
        while self.sweeps.is_planned:
            step = self.sweeps.step(failures)
            assert len(step) <= SWEEP_PARTITIONS
            assert all(self.layouts[topic].is_led for topic, _ in step)
            if breaks_off:
                self.sweeps.doubt(())
                return
            self.rests.difference_update(step)
            self.sweeps.done(step)
        assert {topic for topic in self.sweeps.owed if self.layouts[topic].is_led} == set()


TestSweeping = Sweeping.TestCase
TestSweeping.settings = settings(max_examples=drawn(60), stateful_step_count=25)


# -- settle faults ---------------------------------------------------------------------------------------------------
@pytest.fixture
def released() -> Iterator[threading.Event]:
    """The event for which hanging calls wait; it is set at the test's end at the latest."""
    event = threading.Event()
    yield event
    event.set()


def settled(settler: WatchedSettler, partition: Partition) -> object:
    """Settle a batch, after a sweep of the topics; return None if it failed."""
    repaired(settler, partition)
    settler.settle(batch_of(partition, 5))
    if settler.state is not SettlerState.SETTLING:
        repaired(settler, partition)
        settler.settle(batch_of(partition, 5))
    return landed(settler)


@pytest.mark.parametrize(
    ("error", "next_state"),
    [
        (KafkaError(KafkaError._TIMED_OUT), SettlerState.REBUILDING),
        (REFUSED, SettlerState.ABORTING),
        (KafkaError(KafkaError._FENCED, "another one came", fatal=True), SettlerState.REBUILDING),
        (RETRIABLE, SettlerState.COMMITTING),
        (KafkaError(KafkaError.INVALID_TXN_STATE, "refused for good"), SettlerState.ABORTING),
    ],
    ids=["timed out", "to be aborted", "fatal", "retriable", "refused for good"],
)
def test_a_commit_that_fails_is_no_commit(partition: Partition, error: KafkaError, next_state: SettlerState) -> None:
    class Failing(Client):
        failed = False

        def commit_transaction(self, timeout: float) -> None:
            if not Failing.failed:
                Failing.failed = True
                raise KafkaException(error)
            super().commit_transaction(timeout)

    settler = WatchedSettler(Failing)
    assert settled(settler, partition) is None
    assert settler.state is next_state
    assert (len(settler.clients) == 2) == (next_state is SettlerState.REBUILDING)
    batch = settler.repair([partition])
    assert (batch is not None) == (next_state is SettlerState.COMMITTING), (
        "only a commit that was called again comes through"
    )
    committed = [each for each in settler.clients for asked in each.asked if asked == "commit"]
    assert len(committed) == (1 if batch else 0), "a batch counts as committed only if Kafka was told to commit it"
    repaired(settler, partition)
    last = settler.clients[-1].asked
    assert (last[-len(SWEPT) :] == SWEPT) == (batch is None), "a failed transaction may leave leftovers"


def test_a_call_that_hangs_is_left_behind_with_its_producer(
    partition: Partition, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call may hang beyond librdkafka's own timeout. An earlier version heard no rebalance while a call hung."""

    class Hanging(Client):
        def abort_transaction(self, timeout: float) -> None:
            released.wait(5)

    settler = WatchedSettler(Hanging)
    settler.repair([partition])
    before = settler.state
    monkeypatch.setattr(producer, "ABORT_SECONDS", -0.9)  # the producer adds a margin of one second
    settler.repair([partition])
    assert (before, settler.state) == (SettlerState.SWEEPING, SettlerState.REBUILDING)
    assert len(settler.clients) == 2


def test_progress_is_sent_with_the_member_that_it_belongs_to(partition: Partition) -> None:
    """The broker refuses an expelled member's progress, so a partition's old owner cannot settle beside the new one."""
    members = []

    class Noting(Client):
        def send_offsets_to_transaction(self, positions: list[Any], metadata: Any, timeout: float) -> None:
            members.append(metadata)
            super().send_offsets_to_transaction(positions, metadata, timeout)

    assert settled(WatchedSettler(Noting), partition) is not None
    assert set(members) == {"member"}


def test_a_sweep_is_aborted_only_once_all_of_it_is_written(partition: Partition) -> None:
    """An abort drops the sweep's unsent records, so their partitions would get no end marker."""
    unsent = []

    class Noting(Client):
        def abort_transaction(self, timeout: float) -> None:
            unsent.append(len(self))
            super().abort_transaction(timeout)

    assert settled(WatchedSettler(Noting), partition) is not None
    assert unsent
    assert set(unsent) == {0}
