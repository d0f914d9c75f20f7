"""Redaction for any text: only matches change, offsets hold under folding, and a second reading changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.job import Job, Message, Search, Sources, TextPart
from schemas.screening import Verdict
from screening.plain import plain
from screening.screen import Screen
from tests.screening_rules import CARD, found_in, pii, redacted, regex, screen_of, words

FRAGMENTS = [
    CARD, "4111111111111111", "4", "1", " ", "-", ".", ":", "+49 30 901820", "+", "@", "a", "ada@example.org",
    "[redacted:card]", "[redacted:", "]", "8.8.8.8", "536-90-4399", "DE89370400440532013000", "\u200b", "４１１１",
    "\u0301",
    "bastard", "b4$t4rd", "x", "é", "ﬁ", "日本", "\n", "İ", "ﷺ", "😀", "\x00",
]  # fmt: skip
MARKER = re.compile(r"\[redacted:(?:card|iban|email|phone|ip|ssn|pattern)\]")

texts = st.text(min_size=1, max_size=80) | st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=12).map("".join)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    folder = tmp_path_factory.mktemp("rules")
    return screen_of(folder, pii(more='regions = ["DE", "US"]'), words(), regex(r"x+\s?[a-z]", name="pattern"))


@given(texts)
def test_each_plain_character_knows_its_original_place(text: str) -> None:
    folded = plain(text)
    places = [folded.original(number, number + 1) for number in range(len(folded.text))]

    assert places == sorted(places)
    for character, (start, end) in zip(folded.text, places, strict=True):
        assert 0 <= start < end <= len(text)
        assert character in plain(text[start:end]).text
    assert plain(folded.text).text == folded.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts)
def test_only_matches_change_and_a_second_reading_changes_nothing(screen: Screen, text: str) -> None:
    job = Job(prompt=text)
    first = screen.check("acme", job)
    changed = first.job.prompt
    assert changed is not None

    kept = map(re.escape, MARKER.split(changed))
    assert re.fullmatch("(?s:.+?)".join(kept), text), "a character outside of the markers is not the original's"

    second = screen.check("acme", first.job)
    of_markers = [finding for finding in first.findings if finding.verdict is Verdict.REDACT]
    assert (second.job, second.verdict) == (first.job, first.verdict)
    assert [finding for finding in second.findings if finding.verdict is Verdict.REDACT] == of_markers
    assert len(MARKER.findall(changed)) == sum(finding.count for finding in of_markers)


@given(texts)
def test_a_card_is_found_between_any_texts_without_digits(screen: Screen, text: str) -> None:
    around = re.sub(r"[\w.,:+/@-]", "", plain(text).text)

    assert redacted(screen, f"{around} {CARD} {around}") == f"{around} [redacted:card] {around}"


def test_each_field_is_redacted_in_its_place(tmp_path: Path) -> None:
    everywhere = 'fields = ["prompt", "messages", "search", "metadata"]'
    screen = screen_of(tmp_path, pii(more=everywhere))
    job = Job(
        messages=[
            Message(role="system", content="plain"),
            Message(role="user", content=f"pay {CARD}"),
            Message(role="user", content=[TextPart(type="text", text="a"), TextPart(type="text", text=CARD)]),
        ],
        sources=Sources(
            search=Search(provider="bureau", query=f"who owns {CARD}", parameters={"card": CARD}),
            searches=[Search(provider="wikipedia", query=CARD)],
        ),
        metadata={"card": CARD, "ward": "3b"},
    )

    screened = screen.check("acme", job)

    assert found_in(screened) == {
        ("pii", "card", "messages"): 2,
        ("pii", "card", "search"): 3,
        ("pii", "card", "metadata"): 1,
    }
    messages, sources = screened.job.messages or [], screened.job.sources
    assert [message.text for message in messages] == ["plain", "pay [redacted:card]", "a\n[redacted:card]"]
    assert messages[0] is (job.messages or [])[0]
    assert sources is not None and sources.search is not None and sources.search.query == "who owns [redacted:card]"
    assert sources.search.parameters == {"card": "[redacted:card]"}
    assert [one.query for one in sources.searches] == ["[redacted:card]"]
    assert screened.job.metadata == {"card": "[redacted:card]", "ward": "3b"}


def test_a_match_over_several_parts_of_a_message_leaves_one_marker(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex(r"project\s+falcon", name="falcon"))
    parts = [TextPart(type="text", text=text) for text in ("the project", "falcon flies", "project falcon")]

    screened = screen.check("acme", Job(messages=[Message(role="user", content=parts)]))

    [message] = screened.job.messages or []
    assert not isinstance(message.content, str)
    assert [*message.texts] == ["the [redacted:falcon]", " flies", "[redacted:falcon]"]
    assert found_in(screened) == {("falcon", "regex", "messages"): 2}


def test_a_text_that_markers_make_too_long_for_its_field_becomes_one_marker(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex("[0-9]", name="digit", more='fields = ["metadata"]'))
    job = Job(prompt="hello", metadata={"row": "1 " * 1000})

    assert screen.check("acme", job).job.metadata == {"row": "[redacted:digit]"}


def test_overlapping_matches_share_one_marker(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex("pay 4111", name="pay"), pii())

    assert redacted(screen, f"I pay {CARD} now") == "I [redacted:pay] now"


def test_a_marker_that_is_written_by_hand_shields_nothing_else(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii(), regex("secret.*end", name="secret"))

    assert redacted(screen, f"[redacted:{CARD}]") == "[redacted:[redacted:card]]"
    assert redacted(screen, "secret [redacted:card] end") == "[redacted:secret]"


def test_the_label_of_a_marker_is_no_match(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii(), regex("card", "reject", name="cards"), regex("redacted", name="word"))

    assert redacted(screen, f"pay {CARD}") == "pay [redacted:card]"
    assert screen.check("acme", Job(prompt="pay [redacted:card]")).verdict is Verdict.REDACT


def test_the_strictest_verdict_counts_and_a_rejected_job_is_left_as_it_is(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii(), regex("falcon", "reject", name="falcon"), words())
    job = Job(prompt=f"you bastard, {CARD}, falcon")

    screened = screen.check("acme", job)

    assert screened.verdict is Verdict.REJECT
    assert screened.job is job
    assert [finding.rule for finding in screened.refusals] == ["falcon"]
    assert [finding.rule for finding in screened.findings] == ["pii", "falcon", "words"]


def test_rules_read_only_the_jobs_of_their_tenants(tmp_path: Path) -> None:
    screen = screen_of(
        tmp_path,
        regex("falcon", "reject", 'tenants = ["acme"]', "one"),
        regex("eagle", "reject", 'except_tenants = ["acme"]', "two"),
    )
    job = Job(prompt="falcon and eagle")

    assert [finding.rule for finding in screen.check("acme", job).findings] == ["one"]
    assert [finding.rule for finding in screen.check("other", job).findings] == ["two"]
