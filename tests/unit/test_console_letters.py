"""The page of dead letters: any letter can be shown, and a form that names no letter asks Kafka nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from gateway.access.principal import DEFAULT_SCOPES, Principal
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import put_tenant
from gateway.page.letters import (
    DAYS,
    MOST_SECONDS,
    OBSTACLES,
    ShownLetters,
    callback_of,
    find_letter,
    newest_letters,
    put_letter_back,
    shown_letter,
)
from gateway.page.rendering import page
from gateway.page.visitors import Visitor
from operators.dead_letters import Letter, kind_of
from operators.put_back import Returning
from producers.errors import BrokerUnreachable, RequestRefused
from producers.scan import Range, Stored, StoredPlace
from schemas import topics
from schemas.settings import KafkaSettings
from schemas.topics import Topics
from telemetry.hand_clock import HandClock, SetClock
from tests.drawn import drawn
from tests.unit.console_browser import console_rig, signed_in
from tests.unit.console_rows import EVIL
from tests.unit.gateway_rig import Rig

NAMES = Topics("")
VISITOR = Visitor(Principal("acme", "key:1", "api_key", DEFAULT_SCOPES), "token", can_leave=True)
HEADERS = (
    *(topics.TENANT, topics.JOB_ID, topics.WEBHOOK_ID, topics.CALLBACK_URL, topics.REASON, topics.REASON_DETAIL),
    *(topics.ATTEMPTS, topics.ABRIDGED, topics.SOURCE_TOPIC, topics.SOURCE_PARTITION, topics.SOURCE_OFFSET),
)
SAID = st.one_of(
    st.binary(max_size=30), st.sampled_from([EVIL.encode(), NAMES.results.encode(), NAMES.requests().encode()])
)
RECORDS = st.builds(
    Stored,
    st.just(NAMES.dead_letters),
    st.builds(StoredPlace, st.integers(0, 9), st.integers(0, 2**60)),
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.binary(max_size=9),
    st.none() | st.binary(max_size=9),
    st.lists(st.tuples(st.sampled_from(HEADERS), st.none() | SAID), max_size=12),
)


@settings(max_examples=drawn(200))
@given(RECORDS, st.lists(st.booleans(), min_size=4, max_size=4), st.booleans())
def test_any_letter_can_be_shown(record: Stored, states: list[bool], all_tenants: bool) -> None:
    letter = Letter(record, kind_of(record, NAMES), None, *states)
    found = ShownLetters([shown_letter(letter)], 1)
    said = {"found": found, "days": DAYS, "said": "", "obstacles": OBSTACLES, "all_tenants": all_tenants}
    made = page("letters", 200, visitor=VISITOR, path="/letters", **said)
    shown = LexborHTMLParser(bytes(made.body).decode())
    assert len(shown.css("tbody tr")) == 1
    assert len(shown.css("tbody button")) == (letter.obstacle is None)
    assert not shown.css("main script, main img")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with console_rig(tmp_path_factory.mktemp("letters")) as made:
        yield made


@pytest.mark.parametrize("name", ["", "job_1", "1", "1:", ":1", "-1:2", "1:2:3", "\u0661:2", "1:1e3", f"{10**30}:1"])
def test_a_form_that_names_no_letter_is_answered_without_kafka(rig: Rig, name: str) -> None:
    assert signed_in(rig).send("/console/letters/redrive", {"id": name}).status_code == 404


CLOCK = SetClock(1_800_000_000.0)
KAFKA = KafkaSettings()


def job_letter(offset: int, value: bytes = b"{}", job_id: str = "job_1", tenant: str = "acme") -> Stored:
    """The record of a job's letter in partition 0."""
    said = {topics.TENANT: tenant, topics.JOB_ID: job_id, topics.SOURCE_TOPIC: NAMES.requests()}
    headers = [(name, text.encode()) for name, text in said.items()]
    return Stored(NAMES.dead_letters, StoredPlace(0, offset), 1_799_999_999_000, None, value, headers)


class Letters:
    """A scanner of letters in memory; all other topics are empty. Reading a record moves `clock` by `seconds`."""

    def __init__(self, *records: Stored, clock: HandClock | None = None, seconds: float = 0.0) -> None:
        self._records, self._clock, self._seconds = records, clock, seconds
        self.read_places: set[StoredPlace] = set()

    def __enter__(self) -> Letters:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def topics(self) -> list[str]:
        return [NAMES.requests()]

    def ranges(self, topic: str, since_ms: int | None = None) -> list[Range]:
        return [Range(topic, 0, 0, 9)] if topic == NAMES.dead_letters else []

    def read(self, ranges: list[Range]) -> Iterator[Stored]:
        for each in ranges:
            for record in self._records:
                if each.start <= record.place.offset < each.stop:
                    self.read_places.add(record.place)
                    if self._clock is not None:
                        self._clock.sleep(self._seconds)
                    yield record


def test_a_click_puts_one_letter_back_and_reads_no_other_one() -> None:
    """A stranger may give a job the id of another letter, so a click on a letter finds the letter by its place."""
    letters = Letters(job_letter(4), job_letter(5), job_letter(6, job_id="0:5"), job_letter(7, tenant="globex"))
    sent: list[Returning] = []
    back: Any = MagicMock()
    back.return_value.__enter__.return_value.send.side_effect = sent.extend
    with (
        patch("gateway.page.letters.Scanner", return_value=letters),
        patch("gateway.page.letters.PutBack", back),
        patch("operators.dead_letters.disabled_endpoints", return_value=frozenset()),
        patch("operators.dead_letters.partition_counts", return_value={NAMES.requests(): 1}),
    ):
        found = find_letter(KAFKA, CLOCK, None, StoredPlace(0, 5))
        others = [find_letter(KAFKA, CLOCK, "acme", StoredPlace(*place)) for place in ((0, 8), (0, 9), (1, 5), (0, 7))]
        assert put_letter_back(KAFKA, CLOCK, None, StoredPlace(0, 5))
        assert not put_letter_back(KAFKA, CLOCK, "globex", StoredPlace(0, 5))
    assert found is not None
    assert (found.place, others) == (StoredPlace(0, 5), [None] * 4)
    assert [(each.topic, each.key) for each in sent] == [(NAMES.requests(), None), (NAMES.redriven, b"0:5")]
    assert letters.read_places == {StoredPlace(0, 5), StoredPlace(0, 7)}


def test_the_newest_letters_are_those_of_the_tenant_and_a_search_of_all_letters_ends_in_time() -> None:
    clock = HandClock(CLOCK.now)
    records = (job_letter(0, tenant="globex"), job_letter(1, tenant="globex"), job_letter(2), job_letter(3))
    quick, slow = Letters(*records), Letters(*records, clock=clock, seconds=MOST_SECONDS / 2)
    with (
        patch("gateway.page.letters.Scanner", side_effect=[quick, slow]),
        patch("operators.dead_letters.disabled_endpoints", return_value=frozenset()),
    ):
        found = newest_letters(KAFKA, clock, "acme")
        with pytest.raises(RequestRefused, match="too many for a page"):
            newest_letters(KAFKA, clock, "acme")
    assert ([one["id"] for one in found.shown], found.found) == (["0:3", "0:2"], 2)
    assert slow.read_places == {StoredPlace(0, 0), StoredPlace(0, 1)}


@pytest.mark.parametrize(
    ("url", "status"), [("https://left.example/x", 403), ("https://hooks.example/x", 303), (None, 303)]
)
def test_a_job_whose_callback_the_tenant_may_no_longer_call_is_not_put_back(
    rig: Rig, url: str | None, status: int
) -> None:
    allowed = TenantSettings(callback_domains=["hooks.example"])
    rig.store.write_now(lambda connection: put_tenant(connection, rig.clock, "acme", allowed))
    rig.door.access.forget_tenant("acme")
    value = json.dumps({"prompt": "p", "callback_url": url}).encode()
    with (
        patch("gateway.page.letters.find_letter", return_value=Letter(job_letter(5, value), "job", None)),
        patch("gateway.page.letters.put_letter_back", return_value=True) as back,
    ):
        assert signed_in(rig).send("/console/letters/redrive", {"id": "0:5"}).status_code == status
    assert back.called == (status == 303)


def test_a_visitor_is_not_told_the_address_of_a_kafka_that_is_away(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with patch("gateway.page.letters.newest_letters", side_effect=BrokerUnreachable("kafka-7.inside:9092")):
        answer = signed_in(rig).get("/console/letters")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "kafka-7" not in answer.text
    assert "kafka-7.inside:9092" in caplog.text


@settings(max_examples=drawn(40))
@example(job_letter(1, b"[" * 100_000))
@given(RECORDS)
def test_the_callback_of_any_letter_is_a_text_or_absent(record: Stored) -> None:
    assert isinstance(callback_of(Letter(record, kind_of(record, NAMES), None)), str | None)
