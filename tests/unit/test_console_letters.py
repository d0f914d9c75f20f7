"""The page of dead letters: any letter can be shown, and a form that names no letter asks Kafka nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from gateway.access.principal import DEFAULT_SCOPES, Principal
from gateway.page.letters import DAYS, OBSTACLES, ShownLetters, shown_letter
from gateway.page.rendering import page
from gateway.page.visitors import Visitor
from operators.dead_letters import Letter, kind_of
from producers.scan import Stored, StoredPlace
from schemas import topics
from schemas.topics import Topics
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
