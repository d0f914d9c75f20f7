"""Commands read stored records of any content: no command raises an error, and all output is printable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord
from pydantic_core import to_json

from console.dead_letters import whole_letter
from console.deliveries import timeline
from console.endpoints import endpoint_summary
from operators.cancel import CancelledJobs
from operators.dead_letters import Letter, LetterCounts, LetterFilter, kind_of, returning
from operators.deliveries import read_step, with_waits_as_one
from operators.endpoints import latest_records
from operators.put_back import Returning
from operators.redrive_marks import RedriveMarks, mark
from operators.replay import Counts, has_callback
from operators.undelivered import CallbackStanding, Undelivered
from producers.results import ResultsReader, kept_results
from producers.scan import Range, Stored, StoredPlace, stored
from producers.selection import Selection
from producers.times import show_time
from schemas import topics as names
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock

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


def records(*topics: str) -> st.SearchStrategy[Stored]:
    return st.builds(Stored, st.sampled_from(topics), st.just(StoredPlace(3, 7)), TIMES, KEYS, VALUES, HEADERS)


@example(Stored(READ[-1], StoredPlace(3, 7), 1, None, None, [(names.NOT_BEFORE, "²".encode())]))
@example(
    Stored(TOPICS.attempts, StoredPlace(3, 7), 1, None, b'{"tenant":"","job_id":"","webhook_id":"","at":1e999}', [])
)
@example(
    Stored(TOPICS.attempts, StoredPlace(3, 7), 1, None, b'{"tenant":"","job_id":"","webhook_id":"","at":1e99}', [])
)
@example(Stored(TOPICS.attempts, StoredPlace(3, 7), 1, None, b"[" * 100_000, []))
@given(records(*READ))
def test_deliveries_shows_any_record(record: Stored) -> None:
    steps = [step for step in [read_step(record, FLEET)] * 2 if step is not None]
    "\n".join(timeline(with_waits_as_one(steps))).encode()
    json.dumps([step.said() for step in steps]).encode()


@example(Stored(TOPICS.dead_letters, StoredPlace(3, 7), 1, None, b"[" * 100_000, []), False)
@given(records(TOPICS.dead_letters), st.booleans())
def test_dead_letters_shows_counts_and_puts_back_any_record(record: Stored, as_new: bool) -> None:
    letter = Letter(record, kind_of(record, TOPICS), record.at_ms)
    json.dumps(whole_letter(letter)).encode()
    wanted = LetterFilter(frozenset("a"), "a", frozenset("a"), 1, 2, "https://a.example", True)
    tally = LetterCounts()
    wanted.takes(letter)
    tally.meet(letter, wanted.ids)
    tally.add(letter, wanted.ids)
    partitions: Any = {TOPICS.requests(): 4, TOPICS.requests(bulk=True): 4}
    if letter.kind != "other":
        ensure_producible(returning(letter, FLEET, 1, partitions, as_new))
    ensure_producible(mark(TOPICS, letter.place, record.at_ms, letter.reason, record.headers, 1))


def ensure_producible(record: Returning) -> None:
    assert record.size >= sum(len(name.encode()) + len(value or b"") for name, value in record.headers)


@given(records(TOPICS.redriven), records(TOPICS.dead_letters))
def test_a_mark_of_any_content_is_taken(record: Stored, letter: Stored) -> None:
    marks = RedriveMarks([Range(TOPICS.dead_letters, 3, 0, 9)])
    marks.add(record)
    at_ms = marks.of(letter)
    assert at_ms is None or show_time(at_ms)


@given(st.lists(records(TOPICS.results), max_size=4))
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


@given(records(TOPICS.results), records(TOPICS.attempts))
def test_an_attempt_of_any_content_is_taken(result: Stored, attempt: Stored) -> None:
    found = {TOPICS.attempts: [attempt]}
    scanner: Any = MagicMock()
    scanner.topics.return_value = []
    scanner.kept_from_ms.return_value = 0
    scanner.ranges.side_effect = lambda topic, *times: [Range(topic, 3, 0, 9)]
    scanner.read.side_effect = lambda ranges: iter(found.get(ranges[0].topic, []) if ranges else [])
    attempted = Stored(TOPICS.results, StoredPlace(3, 8), attempt.at_ms, None, None, attempt.headers)
    with (
        patch("operators.undelivered.committed_offsets", return_value={(TOPICS.results, 3): 9}),
        patch("operators.dead_letters.disabled_endpoints", return_value=frozenset()),
    ):
        undelivered = Undelivered(FLEET, scanner, SystemClock(), [result, attempted])
    assert undelivered.standing(result) in CallbackStanding
    assert undelivered.standing(attempted) in CallbackStanding


@given(st.lists(records(TOPICS.endpoints), max_size=4))
def test_endpoints_lists_any_record(found: list[Stored]) -> None:
    for known in latest_records(found).values():
        json.dumps(endpoint_summary(known)).encode()


@given(st.lists(records(TOPICS.control), max_size=4))
def test_a_control_record_of_any_content_is_taken(found: list[Stored]) -> None:
    CancelledJobs(found).holds("a", "b")


def test_a_cancelled_batch_holds_all_of_its_lines_and_no_others() -> None:
    batch = "batch_" + "a" * 32
    order = JobControl(tenant="acme", job_id=batch, state=ControlState.CANCELLED, at=1)
    record = Stored(TOPICS.control, StoredPlace(0, 0), 1, job_key_bytes(order.key), write_control(order), [])
    cancelled = CancelledJobs([record])

    asked = (("acme", f"{batch}.7"), ("acme", batch), ("other", f"{batch}.7"), ("acme", "x"))
    assert [cancelled.holds(*job) for job in asked] == [True, True, False, False]


@pytest.mark.parametrize("at", [10**40, -(10**40), 253402300800000, -62135596800001])
def test_an_endpoint_of_any_time_is_listed(at: int) -> None:
    said = {"tenant": "a", "url": "https://a.example", "state": "disabled", "at": at}
    record = Stored(TOPICS.endpoints, StoredPlace(0, 0), 1, b'["a","https://a.example"]', json.dumps(said).encode(), [])
    assert [endpoint_summary(one)["since"][:4] for one in latest_records([record]).values()] == [
        "9999" if at > 0 else "0001"
    ]


def test_headers_with_characters_of_several_bytes_count_by_their_bytes() -> None:
    headers: Iterable[tuple[str, bytes]] = [("\N{GRINNING FACE}", b"")] * 100
    assert Returning("", None, None, list(headers)).size >= 100 * 6
