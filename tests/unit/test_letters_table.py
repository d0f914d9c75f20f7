"""Dead letters on a terminal: a table with reasons, whatever the headers contain; a pipe gets one line a letter."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from console import dead_letters
from console.letters_table import ROWS_AT_ONCE, write_table
from operators.dead_letters import Letter
from producers.scan import Stored, StoredPlace
from schemas import topics

HEADERS = (topics.REASON, topics.REASON_DETAIL, topics.TENANT, topics.JOB_ID, topics.CALLBACK_URL)


def letter(offset: int = 7, redriven_ms: int | None = None, **said: str) -> Letter:
    headers = [(name.replace("_", "-"), value.encode("utf-8", "surrogatepass")) for name, value in said.items()]
    return Letter(Stored("dead_letters", StoredPlace(0, offset), 0, b"job_1", b"{}", headers), "callback", redriven_ms)


def table_of(*letters: Letter) -> tuple[str, int, dict[str, int]]:
    screen = io.StringIO()
    count, reasons = write_table(Console(file=screen, width=200, no_color=True), (one.summary() for one in letters))
    return screen.getvalue(), count, dict(reasons)


def test_a_row_has_the_reason_and_its_detail_and_no_more_of_a_url_than_its_origin() -> None:
    why: dict[str, Any] = {
        "reason": "callback_exhausted",
        "reason_detail": "the last attempt: timeout",
        "attempts": "10",
    }
    shown, count, reasons = table_of(
        letter(tenant="acme", job_id="job_1", callback_url="https://hooks.example/in?token=secret", **why),
        letter(8, redriven_ms=1, reason="rejected"),
        Letter(letter(9, reason="endpoint_disabled").record, "callback", None, disabled=True),
    )
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    at = lines.index("0:7 1970-01-01 00:00 callback callback_exhausted, 10 tries acme/job_1")
    assert lines[at + 1] == "the last attempt: timeout https://hooks.example"
    assert "secret" not in shown
    assert "rejected, put back" in shown
    assert "endpoint_disabled, held: endpoint_disabled" in shown
    assert (count, reasons) == (3, {"callback_exhausted": 1, "rejected": 1, "endpoint_disabled": 1})


def test_many_letters_are_written_in_tables_of_bounded_length() -> None:
    shown, count, reasons = table_of(*(letter(number, reason="rejected") for number in range(ROWS_AT_ONCE + 1)))
    assert (count, reasons) == (ROWS_AT_ONCE + 1, {"rejected": ROWS_AT_ONCE + 1})
    assert shown.count("given up") == 2
    assert f"0:{ROWS_AT_ONCE} " in shown


def test_a_terminal_of_80_columns_has_room_for_a_row() -> None:
    screen = io.StringIO()
    job_id, detail = "job_" + "7" * 32, "callback_url: the address is not public"
    wide = letter(reason="callback_exhausted", reason_detail=detail, attempts="10", job_id=job_id)
    write_table(Console(file=screen, width=80, no_color=True), [wide.summary()])
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("0:7   1970-01-01 00:00   callback   callback_exhausted")


@given(st.lists(st.text(max_size=400), min_size=len(HEADERS), max_size=len(HEADERS)))
def test_no_header_steers_the_terminal(values: list[str]) -> None:
    said: dict[str, Any] = {name.replace("-", "_"): value for name, value in zip(HEADERS, values, strict=True)}
    shown, _, _ = table_of(letter(**said))
    written = {unicodedata.category(character) for character in shown.replace("\n", "")}
    assert written.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_terminal_gets_the_table_and_a_pipe_the_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_terminal: bool
) -> None:
    found: Any = MagicMock()
    found.letters.return_value = iter([letter(reason="rejected")])

    @contextmanager
    def opened() -> Iterator[Any]:
        yield found

    monkeypatch.setattr(dead_letters, "opened_letters", opened)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: on_terminal)
    dead_letters.list_letters()
    out, err = capsys.readouterr()
    line = "0:7  1970-01-01T00:00:00.000Z  callback  rejected  default  -  -\n"
    assert (out == line) is not on_terminal
    assert ("given up" in out) is on_terminal
    assert err == f"postback: 1 dead letters{': 1 rejected' if on_terminal else ''}\n"
