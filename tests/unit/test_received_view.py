from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from console.received import MAX_SHOWN_CHARACTERS, View
from devkit.receiver import Received

NOW = 1_700_000_000.0
EVENT = {"id": "msg_1", "type": "inference.succeeded", "data": {"id": "job_1", "text": "Überall “blau”"}}
HEADERS = {"webhook-id": "msg_1", "webhook-timestamp": "1699999998", "webhook-signature": "v1,AAAA v1a,BBBB"}


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
    return View(Console(file=screen, width=160, no_color=True))


def test_a_callback_is_shown_with_what_people_look_at_first(view: View, screen: io.StringIO) -> None:
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


def test_what_is_not_genuine_is_shown_with_the_reason_and_counts_as_no_attempt(view: View, screen: io.StringIO) -> None:
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


def test_a_timestamp_of_another_clock_or_none_is_said(view: View, screen: io.StringIO) -> None:
    view.show(received(headers={"webhook-timestamp": "1700000060"}))
    view.show(received(headers={"webhook-timestamp": "yesterday"}))
    assert "60 s in the future: whose clock is wrong?" in screen.getvalue()
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
