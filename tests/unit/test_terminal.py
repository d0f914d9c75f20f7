"""Strangers' text from records, as the commands show it on a terminal."""

from __future__ import annotations

from collections import Counter

import pytest

from console.dead_letters import report_counts, write_lines
from console.deliveries import timeline
from operators.dead_letters import Letter, LetterCounts
from operators.deliveries import CallbackStep
from producers.scan import Stored, StoredPlace

EVIL = "\x1b]0;p\x07\n\u202e"
SHOWN = "\\u001b]0;p\\u0007\\n\\u202e"


def test_no_header_of_a_dead_letter_steers_the_terminal_or_makes_a_second_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    headers = [(name, EVIL.encode()) for name in ("tenant", "job-id", "reason", "reason-detail")]
    letter = Letter(Stored("dead_letters", StoredPlace(0, 7), 0, None, b"{}", headers), "job", None)
    write_lines([letter.summary()])
    report_counts(LetterCounts(Counter({("job", EVIL): 1})))
    out, err = capsys.readouterr()
    assert out == f"0:7  1970-01-01T00:00:00.000Z  job  {SHOWN}  {SHOWN}  {SHOWN}  -\n"
    assert "\\u001b]0;p\\u0007" in err


def test_nothing_that_is_kept_of_a_callback_steers_the_terminal_or_makes_a_second_line() -> None:
    said = {"reason": EVIL, "detail": EVIL, "id": "0:7"}
    steps = [CallbackStep(0, "dead_letter", tenant, "job", None, said) for tenant in ("acme", EVIL)]
    assert timeline(steps) == [
        f"1970-01-01T00:00:00.000Z  {tenant}/job  given up: {SHOWN}, {SHOWN} (dead letter 0:7)"
        for tenant in ("acme", SHOWN)
    ]
