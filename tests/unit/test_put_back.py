"""Records put back: rate and portions, memory, and stored records of any content."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import ConsumerRecord
from pydantic_core import to_json

from cli.operate.dead_letters import whole_letter
from cli.operate.endpoint_deliveries import timeline
from cli.operate.endpoints import endpoint_summary
from cli.operations.cancel import CancelledJobs
from cli.operations.dead_letters import Letter, LetterCounts, LetterFilter, _Partitions, kind_of, returning
from cli.operations.deliveries import read_step, with_waits_as_one
from cli.operations.endpoints import latest_records
from cli.operations.put_back import NotPutBack, PutBack, Returning, put_back
from cli.operations.redrive_marks import RedriveMarks, mark
from cli.operations.replay import Counts, has_callback
from cli.operations.undelivered import CallbackStanding, Undelivered, event_of
from producers.results import ResultsReader, kept_results
from producers.scan import Range, Stored, StoredPlace, stored
from producers.selection import Selection
from producers.times import show_time
from schemas import topics as names
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from schemas.topics import Topics
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock, SetClock


@dataclass
class Sent:
    """A sender that records the time and size of each batch; a batch takes a tenth of a second."""

    clock: HandClock
    batches: list[tuple[float, int]] = field(default_factory=list)

    def send(self, batch: Sequence[Returning]) -> None:
        self.batches.append((self.clock.now, len(batch)))
        self.clock.now += 0.1


def records(number: int, size: int = 10) -> list[list[Returning]]:
    return [[Returning("tier", b"k", bytes(size), [])] for _ in range(number)]


def test_records_are_put_back_no_faster_than_the_rate() -> None:
    for rate, number, seconds in ((10, 35, 3.0), (1000, 2500, 2.0), (2, 3, 1.0)):
        clock, told = HandClock(50.0), list[int]()
        sent: Any = Sent(clock)
        assert put_back(sent, records(number), rate, told.append, clock) == number
        assert told[-1] == sum(count for _, count in sent.batches) == number
        for at, _ in sent.batches:
            assert sum(count for earlier, count in sent.batches if earlier <= at) <= rate * (at - 50.0) + rate
        assert sent.batches[-1][0] - 50.0 == pytest.approx(seconds)


def test_a_transaction_has_bounded_bytes_and_keeps_a_record_with_its_mark() -> None:
    sent: Any = Sent(HandClock(50.0))
    groups = [[large, mark] for [large] in records(20, 900_000) for mark in [Returning("marks", b"k", b"m", [])]]

    assert put_back(sent, groups, 1e6, lambda done: None, sent.clock) == 20
    assert [count for _, count in sent.batches] == [20, 20]


class Producer:
    """A transactional producer of kafka-python, as far as `PutBack` uses it, that records its calls.

    It cannot send the record with the value `unsendable`; Kafka does not answer the calls in `unanswered`.
    """

    def __init__(self, unsendable: bytes | None, unanswered: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._unsendable = unsendable
        self._unanswered = unanswered
        self._sender = SimpleNamespace(wakeup=lambda: None, force_close=lambda: None, join=lambda seconds: None)
        self._transaction_manager = SimpleNamespace(
            begin_commit=lambda: self._ending("commit"), begin_abort=lambda: self._ending("abort")
        )

    def init_transactions(self) -> None:
        self.asked.append("init")

    def begin_transaction(self) -> None:
        self.asked.append("begin")

    def send(self, topic: str, value: bytes | None, *_: Any) -> Any:
        self.asked.append(f"{topic} {(value or b'').decode()}")

        def get(timeout: float) -> None:
            if value == self._unsendable:
                raise kafka_errors.MessageSizeTooLargeError(timeout)

        return SimpleNamespace(get=get)

    def close(self, timeout: float) -> None:
        self.asked.append("close")

    def _ending(self, call: str) -> Any:
        self.asked.append(call)
        return SimpleNamespace(wait=lambda timeout_ms: call not in self._unanswered)


SENT = ["init", "begin", "tier letter", "marks mark"]


@pytest.mark.parametrize(
    ("unsendable", "unanswered", "asked"),
    [
        (None, [], [*SENT, "commit", "close"]),
        (b"letter", [], [*SENT, "abort", "close"]),
        (b"mark", [], [*SENT, "abort", "close"]),
        (b"mark", ["abort"], [*SENT, "abort", "close"]),
        (None, ["commit"], [*SENT, "commit", "abort", "close"]),
    ],
)
def test_a_letter_is_put_back_with_its_mark_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, unsendable: bytes | None, unanswered: list[str], asked: list[str]
) -> None:
    """A letter whose mark alone reaches Kafka is lost: no later redrive puts it back."""
    producer = Producer(unsendable, unanswered)
    monkeypatch.setattr("cli.operations.put_back.connect", lambda *_, **__: producer)
    back = PutBack(KafkaSettings(), "redrive", clock=HandClock(50.0))
    batch = [Returning("tier", b"k", b"letter", []), Returning("marks", b"k", b"mark", [])]
    if unsendable is None and not unanswered:
        back.send(batch)
    else:
        with pytest.raises(NotPutBack):
            back.send(batch)
    back.close()
    assert producer.asked == asked


# -- marks -------------------------------------------------------------------------------------------------------------


LETTERS = 20_000
AT_MS = 1_700_000_000_000
BY_TIME = b'{"letter_at":%d}' % AT_MS


def marked(partition: int, offset: int, at_ms: int = AT_MS, value: bytes | None = BY_TIME) -> Stored:
    return Stored("marks", StoredPlace(0, 0), at_ms, str(StoredPlace(partition, offset)).encode(), value, [])


def letter(partition: int, offset: int, at_ms: int = AT_MS) -> Stored:
    return Stored("letters", StoredPlace(partition, offset), at_ms, None, b"{}", [])


def result(tenant: str, webhook_id: str) -> Stored:
    headers = [("tenant", tenant.encode()), ("webhook-id", webhook_id.encode())]
    return Stored("results", StoredPlace(0, 0), 1, None, b"{}", headers)


def test_a_mark_is_known_by_the_place_of_its_letter_and_others_are_passed_over() -> None:
    marks = RedriveMarks([Range("letters", 0, 10, 13), Range("letters", 2, 0, 1)])
    for record in (
        *(marked(0, 11), marked(0, 9), marked(0, 13), marked(1, 11), marked(2, 0, AT_MS + 6), marked(2, 0, AT_MS + 7)),
        *(Stored("marks", StoredPlace(0, 0), 1, key, BY_TIME, []) for key in (None, b"\xff:1")),
    ):
        marks.add(record)
    assert [marks.of(letter(0, offset)) for offset in (10, 11, 12)] == [None, AT_MS, None]
    assert marks.of(letter(2, 0)) == AT_MS + 7


def test_a_mark_of_an_earlier_letter_at_the_same_place_counts_for_nothing() -> None:
    """`dead_letters` was deleted and recreated, so a new letter has an old letter's partition and offset."""
    for marked_ms, value, counts in (
        (AT_MS + 5, b'{"letter_at":%d}' % AT_MS, True),
        (AT_MS - 50_000, b'{"letter_at":%d}' % AT_MS, True),  # the clock of the broker that stamped the mark is behind
        (AT_MS + 5, b'{"letter_at":%d}' % (AT_MS - 900), False),  # the mark belongs to an earlier letter at this place
        (AT_MS - 70_000, b'{"letter_at":%d}' % AT_MS, False),
        (1 << 46, b'{"letter_at":%d}' % AT_MS, True),
        *((AT_MS + 5, value, False) for value in (None, b"{}", b"[1]", b'{"letter_at":"x"}')),
        (AT_MS + 5, b'{"letter_at":' + b"9" * 99 + b"}", False),
    ):
        marks = RedriveMarks([Range("letters", 0, 0, 1)])
        marks.add(marked(0, 0, marked_ms, value))
        assert marks.of(letter(0, 0)) == (marked_ms if counts else None), value


@given(st.integers(AT_MS - 10**9, AT_MS + 10**9), st.integers(0, 10**10))
def test_a_mark_that_is_written_for_a_letter_counts_for_it(letter_ms: int, later_ms: int) -> None:
    marks, place = RedriveMarks([Range("letters", 0, 0, 1)]), StoredPlace(0, 0)
    written = mark(Topics(), place, letter_ms, "rejected", [], letter_ms + later_ms)
    marks.add(Stored("marks", place, letter_ms + later_ms, written.key, written.value, []))
    assert marks.of(letter(0, 0, letter_ms)) == letter_ms + later_ms


def test_a_mark_takes_eight_bytes_and_a_mark_of_a_deleted_letter_takes_none() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        marks = RedriveMarks([Range("letters", 0, LETTERS, 2 * LETTERS)])
        for offset in range(2 * LETTERS):
            marks.add(marked(0, offset))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert marks.of(letter(0, LETTERS)) is not None
    assert after - before < 9 * LETTERS


def test_each_pair_of_tenant_and_id_has_a_number_of_its_own() -> None:
    events = [
        event_of(result(*named))
        for named in (("acme", "msg_1"), ("acme", "msg_2"), ("globex", "msg_1"), ("acmem", "sg_1"), ("ac", "memsg_1"))
    ]
    assert len(set(events)) == len(events)
    assert event_of(result("acme", "msg_1")) == events[0]
    assert max(map(sys.getsizeof, events)) <= 48


# -- stored records of any content -------------------------------------------------------------------------------------


FLEET = KafkaSettings()
TOPICS = FLEET.topics
READ = [TOPICS.results, TOPICS.dead_letters, TOPICS.redriven, TOPICS.attempts, *TOPICS.tiers.values()]
LARGE = [-(2**63), -(2**62), -1, 0, 2**62, 2**63 - 1]
NUMBERS = st.sampled_from(["²", "٣", "-1", "1e3", "9" * 14, "9" * 18, "9" * 400]) | st.integers(0, 10**15).map(str)
SAID = (
    st.none()
    | st.binary(max_size=9)
    | NUMBERS.map(str.encode)
    | st.sampled_from([*READ, TOPICS.requests()]).map(str.encode)
)
NAMED = st.sampled_from([value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)])
HEADERS = st.lists(
    st.tuples(NAMED | st.binary(max_size=9).map(lambda name: name.decode("utf-8", "backslashreplace")), SAID),
    max_size=9,
)
LEAVES = st.none() | st.booleans() | st.sampled_from(LARGE) | st.integers() | st.floats() | st.text(max_size=9)
FIELDS = ["tenant", "job_id", "webhook_id", "at", "error", "state", "url", "letter_at", "attempt", "status"]
FACTS = st.dictionaries(st.sampled_from(FIELDS), LEAVES).map(lambda said: json.dumps(said).encode())
ATTEMPTS = st.builds(
    lambda at, error: json.dumps({"tenant": "a", "job_id": "b", "webhook_id": "c", "at": at, "error": error}).encode(),
    LEAVES,
    LEAVES,
)
RESULTS = st.text(max_size=9).map(
    lambda job_id: Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="", created_at=1).model_dump_json().encode()
)
NESTS = st.integers(1, 2000).map(lambda depth: b"[" * depth + b"]" * depth)
VALUES = st.none() | st.binary(max_size=9) | FACTS | ATTEMPTS | RESULTS | NESTS
KEYS = st.none() | st.binary(max_size=9) | st.just(b"3:7") | st.lists(st.text(max_size=5), max_size=3).map(to_json)
TIMES = st.sampled_from(LARGE) | st.integers(1_700_000_000_000, 2_000_000_000_000)


def any_records(*topics: str) -> st.SearchStrategy[Stored]:
    return st.builds(Stored, st.sampled_from(topics), st.just(StoredPlace(3, 7)), TIMES, KEYS, VALUES, HEADERS)


def attempt_at(at: str) -> Stored:
    value = f'{{"tenant":"","job_id":"","webhook_id":"","at":{at}}}'.encode()
    return Stored(TOPICS.attempts, StoredPlace(3, 7), 1, None, value, [])


@example(Stored(READ[-1], StoredPlace(3, 7), 1, None, None, [(names.NOT_BEFORE, "²".encode())]))
@example(attempt_at("1e999"))
@example(attempt_at("1e99"))
@example(Stored(TOPICS.attempts, StoredPlace(3, 7), 1, None, b"[" * 100_000, []))
@given(any_records(*READ))
def test_deliveries_shows_any_record(record: Stored) -> None:
    steps = [step for step in [read_step(record, FLEET)] * 2 if step is not None]
    "\n".join(timeline(with_waits_as_one(steps))).encode()
    json.dumps([step.said() for step in steps]).encode()


def ensure_producible(record: Returning) -> None:
    """A record's size counts the bytes of its headers, not their characters."""
    assert record.size >= sum(len(name.encode()) + len(value or b"") for name, value in record.headers)


@example(Stored(TOPICS.dead_letters, StoredPlace(3, 7), 1, None, b"[" * 100_000, []), False)
@given(any_records(TOPICS.dead_letters), st.booleans())
def test_dead_letters_shows_counts_and_puts_back_any_record(record: Stored, as_new: bool) -> None:
    letter = Letter(record, kind_of(record, TOPICS), record.at_ms)
    json.dumps(whole_letter(letter)).encode()
    wanted = LetterFilter("a", "https://a.example", frozenset("a"), 1, 2, frozenset("a"), True)
    tally = LetterCounts()
    wanted.takes(letter)
    tally.meet(letter, wanted.ids)
    tally.add(letter, wanted.ids)
    partitions: Any = {TOPICS.requests(): 4, TOPICS.requests(bulk=True): 4}
    if letter.kind != "other":
        ensure_producible(returning(letter, FLEET, 1, partitions, as_new))
    ensure_producible(mark(TOPICS, letter.place, record.at_ms, letter.reason, record.headers, 1))
    ensure_producible(Returning("", None, None, [("\N{GRINNING FACE}", b"")] * 100))


@given(any_records(TOPICS.redriven), any_records(TOPICS.dead_letters))
def test_a_mark_of_any_content_is_taken(record: Stored, letter: Stored) -> None:
    marks = RedriveMarks([Range(TOPICS.dead_letters, 3, 0, 9)])
    marks.add(record)
    at_ms = marks.of(letter)
    assert at_ms is None or show_time(at_ms)


@given(st.lists(any_records(TOPICS.results), max_size=4))
def test_replay_and_results_take_any_record(found: list[Stored]) -> None:
    counts, selection = (
        Counts(),
        Selection("a", "https://a.example", frozenset("a"), 1, 2, frozenset([StoredPlace(3, 7)])),
    )
    for record in found:
        selection.takes(record)
        has_callback(record)
        counts.add(record, selection, None)
    for result in kept_results(FLEET, MagicMock(read=lambda ranges: found), Selection()):
        result.model_dump_json()


@example([], None)
@given(HEADERS, VALUES)
def test_a_result_counts_whatever_its_headers_hold(
    headers: list[tuple[str, bytes | None]], value: bytes | None
) -> None:
    record = ConsumerRecord(TOPICS.results, 3, 0, 7, 1, 1, None, value, headers, None, 0, 0, 0)
    consumer = MagicMock()
    consumer.poll.return_value = {0: [record]}
    consumer.end_offsets.return_value = {}
    with (
        patch("producers.results.partition_counts", return_value={TOPICS.results: 4}),
        patch("producers.reader.connect", return_value=consumer),
    ):
        settled = list(ResultsReader(FLEET).poll())
    kept = kept_results(FLEET, MagicMock(read=lambda ranges: [stored(record)]), Selection())
    assert [(one.tenant, one.result) for one in settled] == [(stored(record).tenant, result) for result in kept]


@given(any_records(TOPICS.results), any_records(TOPICS.attempts))
def test_an_attempt_of_any_content_is_taken(result: Stored, attempt: Stored) -> None:
    found = {TOPICS.attempts: [attempt]}
    scanner: Any = MagicMock()
    scanner.topics.return_value = []
    scanner.kept_from_ms.return_value = 0
    scanner.ranges.side_effect = lambda topic, *times: [Range(topic, 3, 0, 9)]
    scanner.read.side_effect = lambda ranges: iter(found.get(ranges[0].topic, []) if ranges else [])
    attempted = Stored(TOPICS.results, StoredPlace(3, 8), attempt.at_ms, None, None, attempt.headers)
    with (
        patch("cli.operations.undelivered.committed_offsets", return_value={(TOPICS.results, 3): 9}),
        patch("cli.operations.dead_letters.disabled_endpoints", return_value=frozenset()),
    ):
        undelivered = Undelivered(FLEET, scanner, SystemClock(), [result, attempted])
    assert undelivered.standing(result) in CallbackStanding
    assert undelivered.standing(attempted) in CallbackStanding


@given(st.lists(any_records(TOPICS.endpoints), max_size=4), st.lists(any_records(TOPICS.control), max_size=4))
def test_endpoints_and_cancelled_jobs_take_any_record(found: list[Stored], orders: list[Stored]) -> None:
    CancelledJobs(orders).holds("a", "b")
    for known in latest_records(found).values():
        json.dumps(endpoint_summary(known)).encode()
    for at, year in ((10**40, "9999"), (-(10**40), "0001"), (253402300800000, "9999"), (-62135596800001, "0001")):
        said = {"tenant": "a", "url": "https://a.example", "state": "disabled", "at": at}
        key, value = b'["a","https://a.example"]', json.dumps(said).encode()
        record = Stored(TOPICS.endpoints, StoredPlace(0, 0), 1, key, value, [])
        assert [endpoint_summary(one)["since"][:4] for one in latest_records([record]).values()] == [year]


def test_a_cancelled_batch_holds_all_of_its_lines_and_no_others() -> None:
    batch = "batch_" + "a" * 32
    order = JobControl(tenant="acme", job_id=batch, state=ControlState.CANCELLED, at=1)
    record = Stored(TOPICS.control, StoredPlace(0, 0), 1, job_key_bytes(order.key), write_control(order), [])
    cancelled = CancelledJobs([record])

    asked = (("acme", f"{batch}.7"), ("acme", batch), ("other", f"{batch}.7"), ("acme", "x"))
    assert [cancelled.holds(*job) for job in asked] == [True, True, False, False]


# -- obstacles ---------------------------------------------------------------------------------------------------------


def job_letter(value: bytes | None = b"{}", **headers: str) -> Letter:
    """A job's dead letter; header names have `_` for `-`."""
    named = {"source-topic": "model_requests", **{name.replace("_", "-"): text for name, text in headers.items()}}
    said = [(name, text.encode()) for name, text in named.items()]
    return Letter(Stored("dead_letters", StoredPlace(0, 7), 1_700_000_000_000, None, value, said), "job", None)


def test_a_letter_that_cannot_be_put_back_says_why() -> None:
    for one, obstacle in (
        (job_letter(), None),
        *((job_letter(value), "empty") for value in (b"", None)),
        (job_letter(None, abridged="1"), "too_large"),
        (job_letter(b"x" * 1_000_000), "too_large"),
        (replace(job_letter(), expired=True), "expired"),
        (replace(job_letter(), lane_gone=True), "lane_gone"),
        (replace(job_letter(), cancelled=True), "cancelled"),
    ):
        assert one.obstacle == obstacle


def test_a_letters_kind_follows_from_its_source_topic() -> None:
    lanes = ("model_requests", "model_requests.batch", "model_requests.big", "model_requests.big.batch")
    others = ("model_requests.shadow", "model_requests_of_somebody_else", "another.model_requests")
    kinds = {**dict.fromkeys(lanes, "job"), **dict.fromkeys(others, "other")}
    kinds |= dict.fromkeys(("model_results", "callback_retries.5s"), "callback")
    assert {source: kind_of(job_letter(source_topic=source).record, TOPICS) for source in kinds} == kinds


def test_a_redriven_job_has_its_stated_headers_and_is_judged_by_them_again() -> None:
    """If a job with an invalid tenant were put back as the tenant `default`, its answer would belong to that tenant."""
    given = job_letter(
        tenant="default", said_tenant="a b", job_id="a", said_job_id="b", webhook_id="msg_1", reason="why"
    )
    back = returning(given, FLEET, 0, _Partitions(FLEET, SetClock()), as_new_event=False)
    assert sorted(back.headers) == [("job-id", b"b"), ("tenant", b"a b"), ("webhook-id", b"msg_1")]
