"""Questions to Kafka: topics and their identities, compacted topics; properties and log lines of its clients."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import re
import socket
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from pydantic import SecretStr

from producers.connection import _NUMBERS, _SAME_MEANING, connect, connection_config
from producers.errors import UnmappedProperty, UnusableProperty
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import Intake, Settler, bare_stage, ended, reread
from tests.virtual_time import in_virtual_time
from workers.kafka import compacted, topics
from workers.kafka.clients import REPEAT_SECONDS, RepeatFilter, client_config
from workers.kafka.compacted import (
    SILENT_SECONDS,
    STALE_SECONDS,
    START_SECONDS,
    Follower,
    FollowingEnded,
    until_caught_up,
)
from workers.kafka.topics import AccessDenied, BrokerAway, TopicQuestion, TopicUnanswered, known_ids
from workers.roles import process
from workers.roles.process import TopicWatch
from workers.stage.fetching import SILENCE_SECONDS
from workers.stage.partition import Partition, Phase
from workers.stage.progress import Progress, topic_mark
from workers.stage.record import Record
from workers.stage.stage import Stage
from workers.stage.topic_ids import ASK_AGAIN_SECONDS, Identities, TopicMadeAnew

# -- asking for topics -----------------------------------------------------------------------------------------------
REFUSED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
TIMED_OUT = KafkaError(KafkaError._TIMED_OUT)


class Cluster:
    """A cluster that answers for a topic with the UUID or error in `answers`, or never if `answers` lacks the topic."""

    def __init__(self, **answers: str | KafkaError) -> None:
        self._answers = answers

    def describe_topics(self, asked: Any, request_timeout: float) -> dict[str, Future[Any]]:
        futures: dict[str, Future[Any]] = {name: Future() for name in asked.topic_names}
        for name, future in futures.items():
            answer = self._answers.get(name)
            if isinstance(answer, KafkaError):
                future.set_exception(KafkaException(answer))
            elif answer is not None:
                future.set_result(SimpleNamespace(topic_id=answer))
        return futures


def on_its_thread(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, str]:
    monkeypatch.setattr(topics, "AdminClient", lambda config: cluster)
    return TopicQuestion({}, names, 0.01).result(0.01)


def on_its_loop(cluster: Any, *names: str) -> dict[str, str]:
    return asyncio.run(known_ids(cluster, KafkaSettings(), names))


def test_a_topic_that_the_broker_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(requests="one", results="two", gone=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    found = {"requests": "one", "results": "two"}
    assert on_its_thread(cluster, monkeypatch, "requests", "gone", "results") == found
    assert on_its_loop(cluster, "requests", "gone", "results") == found


@pytest.mark.parametrize(("error", "on_loop"), [(REFUSED, AccessDenied), (TIMED_OUT, BrokerAway)])
def test_an_error_names_its_topic(error: KafkaError, on_loop: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(requests="one", results=error)
    with pytest.raises(TopicUnanswered) as told:
        on_its_thread(cluster, monkeypatch, "requests", "results")
    assert (told.value.topic, told.value.args[0].code()) == ("results", error.code())
    with pytest.raises(on_loop):
        on_its_loop(cluster, "requests", "results")


def test_the_client_of_a_question_lives_exactly_as_long_as_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle client's thread turned without a pause after a broker had died; a client that ended gave no answer."""
    made: list[weakref.ref[Cluster]] = []

    def make(config: object) -> Cluster:
        cluster = Cluster(requests="one")
        made.append(weakref.ref(cluster))
        return cluster

    monkeypatch.setattr(topics, "AdminClient", make)
    question = TopicQuestion({}, ["requests"], 0.01)
    assert question.result(0) == {"requests": "one"}
    assert [client() is not None for client in made] == [True]
    del question
    assert [client() is not None for client in made] == [False]


def test_a_question_is_done_when_each_topic_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "AdminClient", lambda config: Cluster(requests="one"))
    assert TopicQuestion({}, ["requests"], 0.01).done()
    assert not TopicQuestion({}, ["requests", "never answered"], 0.01).done()


def test_the_kafka_thread_waits_no_longer_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TopicUnanswered) as told:
        on_its_thread(Cluster(requests="one"), monkeypatch, "requests", "never answered")
    assert (told.value.topic, told.value.args[0].code()) == ("never answered", KafkaError._TIMED_OUT)


# -- reading on ------------------------------------------------------------------------------------------------------
DEADLINE_SECONDS = 60.0


async def wait_while(comes: list[int]) -> float:
    """Catch up on a topic from which `comes[n]` records come in period n; return the number of periods waited."""
    loop, caught_up, total, left = asyncio.get_running_loop(), asyncio.Event(), 0, iter([0, *comes])
    began = loop.time()

    def read() -> int:
        nonlocal total
        total += next(left)
        if loop.time() - began >= len(comes) * START_SECONDS:
            caught_up.set()
        return total

    await until_caught_up("job_control", caught_up.wait(), loop.create_future(), read)
    return (loop.time() - began) / START_SECONDS


@in_virtual_time
async def test_a_long_topic_is_read_for_as_long_as_something_comes() -> None:
    assert await wait_while([100_000, 1, 5_000]) == 3


@in_virtual_time
async def test_a_topic_that_delivers_no_record_is_given_up() -> None:
    for comes in ([0], [5, 0]):
        with pytest.raises(BrokerAway, match="could not be read to its end: no record came for 60 s"):
            await wait_while([*comes, *[0] * 5])


class Log:
    """A topic of one partition, and a broker that may be away. Each consumer begins at the first record."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.away = False
        self.asked: SimpleQueue[None] = SimpleQueue()
        """An item for each question for the topic's end since the broker is away."""

    def consumer(self, config: dict[str, Any]) -> Reader:
        return Reader(self)


class Reader:
    """A consumer of a `Log`."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._next = 0

    def list_topics(self, topic: str, timeout: float) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=[0])})

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        if self._log.away:
            self._log.asked.put(None)
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return 0, len(self._log.records)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        """Read from the first record on."""

    def consume(self, most: int, timeout: float) -> list[Any]:
        fresh = [] if self._log.away else self._log.records[self._next :]
        found = [_message(self._next + index, key) for index, key in enumerate(fresh)]
        self._next += len(found)
        return found

    def close(self) -> None:
        """Hold no connection."""


def _message(offset: int, key: bytes) -> Any:
    return SimpleNamespace(
        error=lambda: None,
        topic=lambda: "facts",
        partition=lambda: 0,
        offset=lambda: offset,
        key=lambda: key,
        value=lambda: b"{}",
    )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    async def known(kafka: KafkaSettings, topics: list[str]) -> dict[str, str]:
        return dict.fromkeys(topics, "id")

    log = Log()
    monkeypatch.setattr(compacted, "Consumer", log.consumer)
    monkeypatch.setattr(compacted, "topic_ids", known)
    return log


@pytest.mark.parametrize("at_the_start", [True, False])
async def test_a_fact_that_cannot_be_applied_ends_the_process_and_no_later_fact_is_applied(
    log: Log, at_the_start: bool
) -> None:
    """Without an end, the process would act for ever on facts of which one is missing."""
    applied: list[bytes | None] = []

    def apply(key: bytes | None, value: bytes | None) -> None:
        if key == b"poison":
            raise ValueError("private detail")
        applied.append(key)

    followed = Follower(KafkaSettings(), HandClock())
    log.records = [b"first", *[b"poison", b"second"] * at_the_start]
    with pytest.raises(FollowingEnded, match=r"facts cannot be followed any more \(ValueError\)"):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await followed.follow("facts", apply)
            log.records += [b"poison", b"second"]
            await followed.ended()
    await followed.close()
    assert (applied, followed.alive) == ([b"first"], False)
    assert followed.reasons() == ["the topic facts is not followed any more"]


async def test_facts_without_news_for_half_a_day_end_the_process_and_no_earlier(log: Log) -> None:
    """Kafka keeps a deletion for a day, so a process that was away for longer may hold deleted facts."""
    clock = HandClock()
    followed = Follower(KafkaSettings(), clock)
    log.records = [b"first"]
    await followed.follow("facts", lambda key, value: None)
    began, log.away = clock.now, True
    for seconds, reasons in (
        (SILENT_SECONDS, []),
        (STALE_SECONDS, [f"the topic facts could not be read for {STALE_SECONDS:.0f} s"]),
    ):
        _drain(log.asked)
        clock.now = began + seconds
        for _ in range(2):  # at the second question, the thread has ended the round in which the clock moved
            await asyncio.to_thread(log.asked.get, timeout=DEADLINE_SECONDS)
        assert (followed.reasons(), followed.alive) == (reasons, True)
    clock.now += 1
    with pytest.raises(FollowingEnded, match="no news for more than 12 hours"):
        await asyncio.wait_for(followed.ended(), DEADLINE_SECONDS)
    assert not followed.alive
    await followed.close()


def _drain(queue: SimpleQueue[None]) -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        return


# -- topic identities ------------------------------------------------------------------------------------------------
OLD, NEW = topic_mark("old"), topic_mark("new")


class RecreatedCluster:
    """A cluster that knows each topic's UUID; if `ids` is None, no broker answers."""

    def __init__(self, **ids: str) -> None:
        self.ids: dict[str, str] | None = ids
        self.asked = 0
        self.silent = False
        """True if a question that is not waited for gets no answer yet."""
        self.unanswered: list[tuple[Future[dict[str, str]], list[str]]] = []

    def __call__(self, topics: Iterable[str], seconds: float) -> Future[dict[str, str]]:
        self.unanswered.append((Future(), list(topics)))
        future = self.unanswered[-1][0]
        if not self.silent:
            self.answer()
        return future

    def answer(self) -> None:
        """Answer all open questions."""
        for future, names in self.unanswered:
            self.asked += 1
            if self.ids is None:
                future.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
            else:
                future.set_result({name: self.ids[name] for name in names if name in self.ids})
        self.unanswered.clear()


def stage_of(
    cluster: RecreatedCluster,
    intake: Intake,
    settler: Settler | None = None,
    clock: HandClock | None = None,
    **began_with: str,
) -> tuple[Stage, Partition]:
    """A stage with one assigned partition that is being fetched; `began_with` are the UUIDs that its process knows."""
    stage, _ = bare_stage(intake, clock or HandClock(), settler=settler, identities=Identities(cluster, began_with))
    stage.assigned([("requests", 0)])
    (partition,) = stage.partitions.held.values()
    partition.paused = False
    return stage, partition


def records(*offsets: int) -> list[Record]:
    return [Record("requests", 0, offset, b"") for offset in offsets]


def test_progress_of_the_same_topic_is_continued_and_marked_with_the_topic_again() -> None:
    intake = Intake()
    intake.progress = Progress(5, 0b10, topic=OLD)
    stage, partition = stage_of(RecreatedCluster(requests="old"), intake)
    stage.take(records(5, 6, 7), [])
    assert partition.ledger.taken == {5, 7}
    assert Progress.decode(5, partition.progress([]).encode()).topic == OLD


def test_progress_without_a_mark_is_taken_for_the_topic_that_is_there() -> None:
    intake = Intake()
    intake.progress = Progress(5)
    stage, partition = stage_of(RecreatedCluster(requests="new"), intake)
    stage.take(records(5), [])
    assert partition.ledger.taken == {5}
    assert partition.progress([]).topic == NEW


def test_progress_of_another_topic_counts_for_nothing_and_all_is_read_from_the_beginning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    intake = Intake()
    intake.progress = Progress(50, 0b10, open=True, topic=OLD)
    settler = Settler()
    stage, partition = stage_of(RecreatedCluster(requests="new"), intake, settler)
    stage.take(records(50, 51), [("requests", 0, 52)])
    assert (partition.phase, partition.ledger.base, partition.ledger.taken) == (Phase.OPEN, 0, frozenset())
    stage.regulate()
    stage.regulate()
    assert intake.resumed == [("requests", 0, 0)]
    stage.take(records(0, 1), [])
    assert (partition.ledger.taken, partition.careful_records) == (frozenset({0, 1}), 0)
    reread(stage, settler)  # the group has no commit for the new topic yet
    assert (partition.phase, partition.ledger.taken) == (Phase.OPEN, frozenset({0, 1}))


def test_a_topic_that_the_process_knew_by_another_uuid_ends_the_process_before_a_record_is_taken() -> None:
    stage, partition = stage_of(RecreatedCluster(requests="new"), Intake(), requests="old")
    stage.take(records(0), [])
    assert (partition.phase, partition.ledger.taken, stage.stopping is not None) == (Phase.GONE, frozenset(), True)
    assert isinstance(stage.error, TopicMadeAnew)


def test_a_record_after_a_silence_asks_for_the_uuid_although_its_offset_goes_on() -> None:
    """A new topic may already have more records than the old one had, so its offsets need not go back."""
    cluster, clock = RecreatedCluster(requests="old"), HandClock()
    stage, partition = stage_of(cluster, Intake(), clock=clock)
    stage.take(records(7, 8), [("requests", 0, 9)])
    asked = cluster.asked
    clock.sleep(SILENCE_SECONDS / 2)
    stage.take(records(9), [])
    assert cluster.asked == asked
    clock.sleep(SILENCE_SECONDS)
    stage.take(records(10, 11), [])
    assert (cluster.asked, partition.ledger.taken) == (asked + 1, frozenset({7, 8, 9, 10, 11}))
    cluster.ids = {"requests": "new"}
    clock.sleep(SILENCE_SECONDS)
    stage.take(records(12), [])
    assert isinstance(stage.error, TopicMadeAnew)
    assert partition.ledger.taken == {7, 8, 9, 10, 11}


def test_records_of_a_doubted_topic_run_and_are_settled_once_kafka_has_answered() -> None:
    """In an earlier version, each record after a quarter second of silence waited up to 5 s for the answer."""
    cluster, clock = RecreatedCluster(requests="old"), HandClock()
    stage, partition = stage_of(cluster, Intake(), clock=clock)
    stage.take(records(7), [])
    partition.open_committed = True
    stage.dispatch()
    clock.sleep(SILENCE_SECONDS)
    cluster.silent = True
    stage.take(records(8), [])
    assert (len(cluster.unanswered), stage.dispatch(), partition.running) == (1, 1, 2)
    ended(stage, partition, 7, 8)
    assert (stage.transactions.compose().offsets, stage.patience() > 0) == ({}, True)
    cluster.ids = None
    cluster.answer()
    stage.collect()
    assert stage.transactions.compose().offsets == {}, "no answer leaves the doubt"
    cluster.ids = {"requests": "old"}
    clock.sleep(ASK_AGAIN_SECONDS)
    stage.collect()
    cluster.answer()
    stage.collect()
    assert stage.transactions.compose().offsets == {partition: [7, 8]}


def test_nothing_is_settled_for_a_doubted_topic_that_was_created_again() -> None:
    """Its records have other identities in the next process, which would write their results a second time."""
    cluster, clock = RecreatedCluster(requests="old"), HandClock()
    stage, partition = stage_of(cluster, Intake(), clock=clock)
    stage.take(records(7), [])
    clock.sleep(SILENCE_SECONDS)
    cluster.silent = True
    stage.take(records(8), [])
    ended(stage, partition, 7, 8)
    cluster.ids = {"requests": "new"}
    cluster.answer()
    stage.collect()
    assert (stage.transactions.compose().offsets, stage.transactions.pending) == ({}, [])
    assert (partition.phase, isinstance(stage.error, TopicMadeAnew)) == (Phase.GONE, True)


@pytest.mark.parametrize("delivered", [(records(3), []), (records(9, 0), []), ([], [("requests", 0, 0)])])
def test_a_partition_that_goes_back_without_a_seek_asks_for_the_uuid(delivered: tuple[list[Record], Any]) -> None:
    cluster = RecreatedCluster(requests="old")
    stage, partition = stage_of(cluster, Intake())
    stage.take(records(7, 8), [])
    asked = cluster.asked
    stage.take(*delivered)  # the log was truncated, but the topic's UUID is the same, so the stage goes on
    assert (cluster.asked, stage.stopping) == (asked + 1, None)
    stage.take(records(9), [])
    cluster.ids = {"requests": "new"}
    stage.take(*delivered)
    assert stage.stopping is not None
    assert partition.ledger.taken <= {3, 7, 8, 9, 0}


def test_only_the_first_record_of_an_empty_partition_asks_for_the_uuid() -> None:
    cluster = RecreatedCluster(requests="old")
    stage, partition = stage_of(cluster, Intake())
    stage.take([], [("requests", 0, 0)])
    stage.take(records(0), [])
    asked = cluster.asked
    stage.take(records(1), [("requests", 0, 2)])
    stage.take(records(2), [("requests", 0, 3)])
    assert (asked, cluster.asked, partition.ledger.taken) == (2, 2, frozenset({0, 1, 2}))


def test_a_partition_that_goes_back_by_a_seek_does_not_ask_for_the_uuid() -> None:
    cluster = RecreatedCluster(requests="old")
    stage, partition = stage_of(cluster, Intake())
    stage.take(records(7, 8), [])
    partition.rewind_to = 7
    stage.regulate()
    stage.regulate()
    stage.take(records(7), [])
    assert cluster.asked == 1


@pytest.mark.parametrize(
    ("ids", "detail"),
    [(None, "Local: Timed out"), ({}, "the topic requests is gone")],
    ids=["no answer", "the topic is gone"],
)
def test_a_partition_waits_unopened_until_kafka_states_the_topics_uuid(
    ids: dict[str, str] | None, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, intake = RecreatedCluster(requests="old"), Intake()
    cluster.ids = ids
    stage, partition = stage_of(cluster, intake)
    stage.take(records(0), [])
    assert (partition.phase, partition.rewind_to, stage.stopping) == (Phase.ASSIGNED, 0, None)
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    assert [line["detail"] for line in said if line["action"] == "kafka-trouble"] == [detail]
    cluster.ids = {"requests": "old"}
    stage.regulate()
    stage.regulate()
    stage.take(records(0), [])
    assert partition.ledger.taken == {0}


async def test_a_topic_that_is_only_written_to_ends_the_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, str] | BrokerAway] = [BrokerAway("away"), {"results": "old"}, {}, {"results": "new"}]
    answers = iter(said)
    watch = TopicWatch(KafkaSettings(), look_seconds=0)
    watch.ids["results"] = "old"
    seen: list[list[str]] = []

    async def known_ids(*_: object) -> dict[str, str]:
        seen.append(watch.reasons())
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(process, "known_ids", known_ids)
    with pytest.raises(TopicMadeAnew, match="the topic results was deleted and created again"):
        await asyncio.wait_for(watch.ended(), 30)
    gone = ["the topic results does not exist any more; `postback topics create` makes it"]
    assert (seen, watch.alive) == ([[], [], [], gone], True)


def config_of(**extra: str) -> dict[str, Any]:
    settings = KafkaSettings(
        bootstrap_servers="a:9092, b:9092", extra={name: SecretStr(value) for name, value in extra.items()}
    )
    return connection_config(settings)


def test_a_secured_connection_is_mapped_whole() -> None:
    assert config_of(
        security_protocol="sasl_ssl",
        sasl_mechanisms="SCRAM-SHA-512",
        sasl_username="ada",
        sasl_password="hunter2",
        ssl_ca_location="/ca.pem",
        ssl_certificate_location="/cert.pem",
        ssl_key_location="/key.pem",
        ssl_endpoint_identification_algorithm="none",
        socket_timeout_ms="5000",
    ) == {
        "bootstrap_servers": ["a:9092", "b:9092"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ada",
        "sasl_plain_password": "hunter2",
        "ssl_cafile": "/ca.pem",
        "ssl_certfile": "/cert.pem",
        "ssl_keyfile": "/key.pem",
        "ssl_check_hostname": False,
        "request_timeout_ms": 5000,
    }


def test_every_name_that_is_mapped_is_one_that_each_client_knows() -> None:
    mapped = {*_SAME_MEANING.values(), *_NUMBERS.values(), "security_protocol", "ssl_check_hostname"}
    for client in (KafkaAdminClient, KafkaConsumer, KafkaProducer):
        assert mapped <= set(client.DEFAULT_CONFIG), client


def test_properties_that_mean_nothing_to_a_command_are_skipped() -> None:
    assert config_of() == {"bootstrap_servers": ["a:9092", "b:9092"]}
    for extra in (
        {"queued_min_messages": "10", "statistics_interval_ms": "1000"},
        dict.fromkeys(("client_rack", "fetch_min_bytes", "max_poll_interval_ms", "compression_type"), "1"),
        dict.fromkeys(("connections_max_idle_ms", "socket_send_buffer_bytes"), "0"),  # no limit, and no number
        {"ssl_ca_location": "probe", "enable_ssl_certificate_verification": "true"},  # the system's certificates
    ):
        assert config_of(**extra) == config_of()
    assert config_of(reconnect_backoff_ms="0")["reconnect_backoff_ms"] == 0


def test_each_property_of_librdkafka_is_mapped_ignored_or_listed_here_as_refused(tmp_path: Path) -> None:
    """A new version of librdkafka may add properties; each has to be mapped, ignored, or listed here as refused."""
    refused = set()
    for name in librdkafka_properties(tmp_path / "properties"):
        with contextlib.suppress(UnusableProperty):  # the name is mapped, but 1 is perhaps no valid value
            try:
                config_of(**{name.replace(".", "_"): "1"})
            except UnmappedProperty:
                refused.add(name)
    assert {name for name in refused if not name.startswith(("sasl.oauthbearer.", "https.ca."))} == {
        # these state identity and trust in forms that kafka-python does not accept
        *("ssl.ca.certificate.stores", "ssl.ca.pem", "ssl.certificate.pem", "ssl.key.pem"),
        *("ssl.keystore.location", "ssl.keystore.password"),
        *("ssl.cipher.suites", "ssl.curves.list", "ssl.sigalgs.list"),
        *("ssl.engine.id", "ssl.engine.location", "ssl.providers"),
        *("enable.sasl.oauthbearer.unsecure.jwt", "sasl.kerberos.keytab", "sasl.kerberos.kinit.cmd"),
        *("sasl.kerberos.min.time.before.relogin", "sasl.kerberos.principal"),
        # this is an alias of bootstrap.servers, which has its own setting
        "metadata.broker.list",
        # these are callbacks, objects, and libraries to load
        *("interceptors", "opaque", "plugin.library.paths"),
    }


def librdkafka_properties(scratch: Path) -> list[str]:
    """The property names of confluent-kafka's bundled librdkafka that an environment variable can state."""
    (library,) = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs").glob("librdkafka-*")
    c, librdkafka = ctypes.CDLL(None), ctypes.CDLL(str(library))
    c.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(c.fopen(bytes(scratch), b"w"))
    librdkafka.rd_kafka_conf_properties_show(file)
    c.fclose(file)
    names = re.findall(r"^([a-z][a-z._]+?) +\| +[*CP] +\|", scratch.read_text(), re.MULTILINE)
    assert len(names) > 150
    return [name for name in names if "_" not in name]  # the value of a name with `_` is a callback or an object


def test_a_property_without_an_equal_is_named_and_its_value_is_not() -> None:
    with pytest.raises(UnmappedProperty, match=r"ssl\.key\.pem \(POSTBACK_KAFKA__EXTRA__SSL_KEY_PEM\)") as raised:
        config_of(ssl_key_pem="private")
    assert "private" not in str(raised.value)
    assert "name the file in ssl.key.location" in str(raised.value)


def test_a_value_that_cannot_be_used_is_not_shown_and_not_taken_for_a_broker_that_is_away() -> None:
    checked = ("ssl_endpoint_identification_algorithm", "enable_ssl_certificate_verification")
    for name in ("socket_timeout_ms", "security_protocol", *checked):
        with pytest.raises(UnusableProperty) as raised:
            config_of(**{name: "soonish"})
        assert "soonish" not in str(raised.value)
    readable = r"ssl\.ca\.location .* the path of a file that can be read"
    for client, name, value, problem in (
        (KafkaAdminClient, "ssl_ca_location", "/absent/ca.pem", readable),
        (KafkaConsumer, "connections_max_idle_ms", "200", "takes together"),
    ):
        with pytest.raises(UnusableProperty, match=problem):
            connect(client, KafkaSettings(extra={name: SecretStr(value)}))


# -- log lines of librdkafka -------------------------------------------------------------------------------------------


REFUSED_LINE = (
    "127.0.0.1:9092/1: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 3ms in state CONNECT)"
)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def repeats(clock: HandClock) -> RepeatFilter:
    return RepeatFilter(clock)


def line(text: str, client: str = "rdkafka#producer-1", what: str = "FAIL") -> logging.LogRecord:
    return logging.LogRecord("librdkafka", logging.ERROR, "", 0, "%s [%s] %s", (what, client, text), None)


def passed(repeats: RepeatFilter, record: logging.LogRecord) -> str | None:
    return record.getMessage() if repeats.filter(record) else None


def test_one_line_of_a_kind_passes_and_the_next_one_counts_those_between(
    repeats: RepeatFilter, clock: HandClock
) -> None:
    text = f"[thrd:127.0.0.1:9092/1]: {REFUSED}"
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text}"
    for number in range(600):
        clock.sleep(REPEAT_SECONDS / 601)
        assert passed(repeats, line(text.replace("3ms", f"{number}ms"), f"rdkafka#producer-{number}")) is None
    clock.sleep(1)
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text} (and 600 more like it before)"
    clock.sleep(REPEAT_SECONDS)
    assert passed(repeats, line(text)) == f"FAIL [rdkafka#producer-1] {text}"


def test_another_broker_and_another_trouble_are_of_another_kind(repeats: RepeatFilter) -> None:
    texts = [
        f"[thrd:127.0.0.1:9092/1]: {REFUSED}",
        f"[thrd:127.0.0.1:9093/2]: {REFUSED}",
        "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: SASL authentication error: the password is wrong",
    ]
    assert None not in [passed(repeats, line(text)) for text in texts]
    assert passed(repeats, line(texts[0], what="SESSTMOUT")) is not None


def test_clients_that_come_and_go_report_an_absent_broker_once(caplog: pytest.LogCaptureFixture) -> None:
    """Real clients run here, so the test sees the lines that librdkafka really passes to the logger."""
    with socket.socket() as nobody, caplog.at_level(logging.INFO, "librdkafka"):
        nobody.bind(("127.0.0.1", 0))  # the port is bound but not listening, so connections are refused
        config = client_config(KafkaSettings(bootstrap_servers=f"127.0.0.1:{nobody.getsockname()[1]}"))
        for _ in range(5):
            producer = Producer({**config, "reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 10})
            deadline = Deadline.after(SystemClock(), 0.3)
            while not deadline.passed:
                producer.poll(0.05)
    said = [record.getMessage() for record in caplog.records if "Connection refused" in record.getMessage()]
    assert len(said) == 1, said
