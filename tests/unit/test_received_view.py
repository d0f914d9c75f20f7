from __future__ import annotations

import io
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from console.received import MAX_SHOWN_CHARACTERS, MAX_SHOWN_IN_LINE, Summary, View
from devkit.receiver import Received

NOW = 1_700_000_000.0
EVENT = {"id": "msg_1", "type": "inference.succeeded", "data": {"id": "job_1", "text": "Überall “blau”"}}
HEADERS = {"webhook-id": "msg_1", "webhook-timestamp": "1699999998", "webhook-signature": "v1,AAAA v1a,BBBB"}


JSON = st.none() | st.integers() | st.text(max_size=600) | st.lists(st.text(max_size=5))


def received(event: Any = EVENT, **changed: Any) -> Received:
    given: dict[str, Any] = {
        "webhook_id": "msg_1",
        "verified": True,
        "problem": None,
        "headers": HEADERS,
        "event": event,
        "body": b"",
        "received_at": NOW,
        "status": 200,
    }
    return Received(**{**given, **changed})


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def view(screen: io.StringIO) -> View:
    return View(Console(file=screen, width=160, no_color=True), verbose=True)


@pytest.fixture
def brief(screen: io.StringIO) -> View:
    return View(Console(file=screen, width=60, no_color=True))


def test_a_callback_is_shown_with_the_facts_that_people_look_at_first(view: View, screen: io.StringIO) -> None:
    view.show(received())
    head, *facts = screen.getvalue().splitlines()
    assert head.endswith("inference.succeeded  verified  answered 200")
    assert [" ".join(line.split()) for line in facts[:3]] == [
        "webhook-id msg_1",
        "signed 2 s before it came",
        "signatures v1 v1a",
    ]
    assert json.loads("\n".join(facts[3:])) == EVENT
    assert "Überall “blau”" in screen.getvalue()


def test_a_repeat_of_an_event_is_shown_as_its_next_attempt(view: View, screen: io.StringIO) -> None:
    for webhook_id, status in [("msg_1", 503), ("msg_2", 503), ("msg_1", 200)]:
        view.show(received(webhook_id=webhook_id, status=status))
    heads = [line for line in screen.getvalue().splitlines() if "answered" in line]
    assert [line.partition("answered ")[2] for line in heads] == ["503", "503", "200  attempt 2 of this event"]


def test_a_forged_callback_is_shown_with_the_reason_and_counts_as_no_attempt(view: View, screen: io.StringIO) -> None:
    for _ in range(2):
        view.show(received(verified=False, problem="the webhook-id header is missing", status=401, headers={}))
    assert "not verified  answered 401" in screen.getvalue()
    assert "problem     the webhook-id header is missing" in screen.getvalue()
    assert "attempt" not in screen.getvalue()


def test_nothing_that_comes_in_can_steer_the_terminal(view: View, screen: io.StringIO) -> None:
    evil = "\x1b]0;owned\x07 \x9b2J \u202e \u2028 \x7f \ud800 [bold]"
    view.show(
        received({"type": evil, "text": evil}, webhook_id=evil, problem=evil, headers={"webhook-timestamp": evil})
    )
    view.show(received(None, body=evil.encode("utf-8", "surrogatepass")))
    shown = screen.getvalue()
    for character in evil[:-7].replace(" ", ""):
        if not (character.isascii() and character.isprintable()):
            assert character not in shown
    for escaped in ("\\u001b]0;owned\\u0007", "\\u009b2J", "\\u202e", "\\u2028", "\\u007f", "\\ud800", "[bold]"):
        assert escaped in shown


def test_a_timestamp_of_another_clock_or_none_is_reported(view: View, screen: io.StringIO) -> None:
    view.show(received(headers={"webhook-timestamp": "1700000060"}))
    view.show(received(headers={"webhook-timestamp": "yesterday"}))
    assert "60 s in the future; check both clocks" in screen.getvalue()
    assert "at yesterday, which is no Unix second" in screen.getvalue()


def test_a_long_event_is_cut_and_a_deep_one_shown_on_a_line(view: View, screen: io.StringIO) -> None:
    view.show(received({"type": "inference.succeeded", "text": "x" * 50_000}))
    assert len(screen.getvalue()) < MAX_SHOWN_CHARACTERS + 1_000
    assert "`--out FILE` keeps them" in screen.getvalue()
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    view.show(received(deep, body=b"[" * 100))
    assert "[" * 100 in screen.getvalue()


def test_a_callback_takes_one_line_with_its_job(brief: View, screen: io.StringIO) -> None:
    event = {"type": "inference.failed", "data": {"job_id": "job_" + "7" * 40}}
    brief.show(received(event))
    brief.show(received(event, status=503))
    first, second = screen.getvalue().splitlines()
    assert first.endswith("inference.failed  verified  answered 200  job_" + "7" * 40)
    assert "answered 503  attempt 2 of this event  job_" in second


def test_a_refused_callback_takes_one_line_with_the_reason(brief: View, screen: io.StringIO) -> None:
    brief.show(received(verified=False, problem="the webhook-id header is missing", status=401))
    [line] = screen.getvalue().splitlines()
    assert line.endswith("not verified  answered 401  the webhook-id header is missing")


@given(text=st.text(max_size=600), job_id=JSON, kind=JSON)
def test_any_text_of_a_stranger_takes_one_line_without_control_characters(text: str, job_id: Any, kind: Any) -> None:
    screen = io.StringIO()
    brief = View(Console(file=screen, width=60, no_color=True))
    brief.show(received({"type": kind, "data": {"job_id": job_id}}, problem=None))
    brief.show(received({"type": text, "data": text}, problem=text, verified=False))
    brief.show(received([text]))
    shown = screen.getvalue()
    assert shown.count("\n") == 3
    assert {unicodedata.category(one) for one in shown.replace("\n", "")}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert len(shown) < 4 * 6 * MAX_SHOWN_IN_LINE


def test_the_summary_counts_events_answers_and_refused_signatures() -> None:
    summary = Summary()
    assert str(summary) == "events: 0; requests: 0; refused signatures: 0"
    for one in (
        received(status=503),
        received(),
        received({"type": "inference.failed"}, webhook_id="msg_2"),
        received({"type": "inference.failed"}, webhook_id="msg_3", verified=False, problem="x", status=401),
        received(None, webhook_id=None, verified=False, problem="x", status=401),
    ):
        summary.add(one)
    assert str(summary) == (
        "events: 2 (1 inference.failed, 1 inference.succeeded); "
        "requests: 5 (2 answered 200, 2 answered 401, 1 answered 503); refused signatures: 2"
    )
