"""Replays and redrives over records in memory: their obstacles, and their look at the present state at their start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cli.operations.dead_letters import DeadLetters, LetterFilter
from cli.operations.put_back import Returning
from cli.operations.redrive_marks import mark
from cli.operations.replay import Counts, Replay
from producers.scan import Range, Stored, StoredPlace
from producers.selection import Selection
from schemas import topics as names
from schemas.endpoint import EndpointKey
from schemas.settings import KafkaSettings
from telemetry.hand_clock import HandClock

FLEET = KafkaSettings()
TOPICS = FLEET.topics
NOW = 1_800_000_000.0
AT_MS = 1_799_999_000_000
URL, OTHER = "https://a.example/hook", "https://b.example/hook"


class Scanned:
    """A scanner of records in memory, each topic with one partition. A topic's records may be added to."""

    def __init__(self, **records: list[Stored]) -> None:
        self.records = records

    def ranges(self, topic: str, *_: Any) -> list[Range]:
        return [Range(topic, 0, 0, len(found))] if (found := self.records.get(topic)) else []

    def topics(self) -> list[str]:
        return [TOPICS.requests()]

    def read(self, ranges: Sequence[Range]) -> Iterator[Stored]:
        for each in ranges:
            yield from self.records[each.topic][each.start : each.stop]


class Back:
    """Takes the records that are put back."""

    def __init__(self) -> None:
        self.taken: list[Returning] = []

    def send(self, batch: Sequence[Returning]) -> None:
        self.taken += batch

    @property
    def jobs(self) -> list[str]:
        """The jobs whose callbacks are in the smallest tier."""
        tier = next(iter(TOPICS.tiers.values()))
        return [dict(one.headers)[names.JOB_ID].decode() for one in self.taken if one.topic == tier]


class Endpoints:
    """The disabled endpoints, as `disabled_endpoints` reads them from Kafka."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.disabled: set[EndpointKey] = set()
        for module in ("replay", "dead_letters"):
            monkeypatch.setattr(
                f"cli.operations.{module}.disabled_endpoints", lambda settings: frozenset(self.disabled)
            )


@pytest.fixture
def endpoints(monkeypatch: pytest.MonkeyPatch) -> Endpoints:
    return Endpoints(monkeypatch)


def stored(topic: str, offset: int, job_id: str, url: str | None = URL, tenant: str = "acme", **more: str) -> Stored:
    said = {names.TENANT: tenant, names.JOB_ID: job_id, names.WEBHOOK_ID: f"msg_{job_id}"}
    said |= {names.CALLBACK_URL: url} if url else {}
    said |= {name.replace("_", "-"): value for name, value in more.items()}
    headers = [(name, value.encode()) for name, value in said.items()]
    return Stored(topic, StoredPlace(0, offset), AT_MS, job_id.encode(), b"{}", headers)


def results() -> Any:
    made = [("here", URL, "acme"), ("there", OTHER, "acme"), ("theirs", URL, "globex"), ("stored", None, "acme")]
    return Scanned(**{TOPICS.results: [stored(TOPICS.results, offset, *one) for offset, one in enumerate(made)]})


def letters() -> Any:
    why = {"reason": "callback_exhausted", "source_topic": TOPICS.results, "source_partition": "0"}
    made = [stored(TOPICS.dead_letters, n, job, source_offset=str(n), **why) for n, job in enumerate(("one", "two"))]
    return Scanned(**{TOPICS.dead_letters: made, TOPICS.redriven: []})


def test_a_replay_leaves_out_disabled_endpoints_and_results_without_a_callback(endpoints: Endpoints) -> None:
    endpoints.disabled.add(("acme", URL))
    replay, back, counts = Replay(FLEET, results(), Selection(), HandClock(NOW)), Back(), Counts()
    assert [record.key for group in replay.returning(counts) for record in group] == [b"there", b"theirs"]
    assert (counts.count, counts.held) == (2, {"endpoint_disabled": 1, "no_callback": 1})
    put: Any = back
    replay.run(put, 1000, lambda done: None)
    assert back.jobs == ["there", "theirs"]


def test_a_replay_goes_by_the_endpoints_at_its_own_time_and_not_at_its_counts(endpoints: Endpoints) -> None:
    replay, back = Replay(FLEET, results(), Selection(tenant="acme"), HandClock(NOW)), Back()
    assert replay.count().count == 2
    endpoints.disabled.add(("acme", URL))
    put: Any = back
    assert replay.run(put, 1000, lambda done: None).count == 1
    assert back.jobs == ["there"]


def test_a_replay_with_a_limit_puts_back_and_counts_no_more(endpoints: Endpoints) -> None:
    replay, back = Replay(FLEET, results(), Selection(), HandClock(NOW)), Back()
    put: Any = back
    assert replay.run(put, 1000, lambda done: None, limit=2).count == 2
    assert back.jobs == ["here", "there"]


def test_a_redrive_leaves_out_letters_that_another_put_back_after_the_count(endpoints: Endpoints) -> None:
    """The other redrive was fenced, but its letters have been in their tier since then."""
    scanned, back, clock = letters(), Back(), HandClock(NOW)
    redrive = DeadLetters(FLEET, scanned, clock)
    assert redrive.tally(LetterFilter()).count == 2
    marked = mark(TOPICS, StoredPlace(0, 0), AT_MS, "callback_exhausted", [], AT_MS + 1)
    scanned.records[TOPICS.redriven].append(
        Stored(TOPICS.redriven, StoredPlace(0, 0), AT_MS + 1, marked.key, marked.value, [])
    )
    put: Any = back
    assert redrive.redrive(LetterFilter(), put, 1000, lambda done: None).count == 1
    assert (back.jobs, [one.key for one in back.taken if one.topic == TOPICS.redriven]) == (["two"], [b"0:1"])


def test_a_redriven_callback_starts_again_without_its_former_waits(endpoints: Endpoints) -> None:
    scanned, back = letters(), Back()
    scanned.records[TOPICS.dead_letters][1].headers.extend([(names.ATTEMPT, b"9"), (names.WAITED, b"99")])
    put: Any = back
    DeadLetters(FLEET, scanned, HandClock(NOW)).redrive(LetterFilter(), put, 1000, lambda done: None)
    now = str(int(NOW * 1000)).encode()
    again = {names.NOT_BEFORE: now, names.LEFT: b"0", names.WRITTEN: now, names.RESULT_AT: now}
    for one in (record for record in back.taken if record.topic != TOPICS.redriven):
        job_id = (one.key or b"").decode()
        whose = {names.TENANT: b"acme", names.JOB_ID: one.key, names.WEBHOOK_ID: f"msg_{job_id}".encode()}
        assert dict(one.headers) == {**whose, names.CALLBACK_URL: URL.encode(), **again}
    assert back.jobs == ["one", "two"]
