"""Hostile texts: a check's work grows with the text's length and no faster, whatever the text and the pattern."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest

from schemas.job import Job
from schemas.screening import Verdict
from screening.screen import Screen
from tests.screening_rules import pii, redacted, regex, screen_of, words

REPEATED = [
    "1", "4111 ", "12 ", "a@", "a@b.co ", "+1", "+49 30 901820; ", "030 901820, ", "(", "1.2.3.4 ", ":",
    "1::2 ", "DE89 ", "536-90-4399 ", "x ", "x", "a", "bastard ", "bastaaard ", "b4$t4rd ", "４１",
    "[redacted:card]", "\n", "İ", "аb ", "\u0301\u0327", "a\u0327\u0301", "e\u200b", "ﷺ", "😀", "@", "-",
    "a-", "$",
]  # fmt: skip
CHARS = 16_384


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    folder = tmp_path_factory.mktemp("rules")
    return screen_of(
        folder, pii(more='regions = ["DE", "US"]'), words(), regex(r"x.*y|x", "flag"), regex(r"(a+)+\$", name="nested")
    )


def calls(screen: Screen, text: str) -> int:
    """Calls of functions during a check."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    job = Job(prompt=text)
    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        screen.check("acme", job)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("piece", REPEATED, ids=ascii)
def test_twice_the_text_takes_at_most_twice_the_steps(screen: Screen, piece: str) -> None:
    """A step is a call of a function.

    A call takes linear time at most: RE2 never backtracks, and neither does any pattern of `re` here.
    """
    half = piece * (CHARS // 2 // len(piece))
    calls(screen, half)  # fills the caches before the calls are counted

    assert calls(screen, half + half) <= 2.2 * calls(screen, half) + 2000


@pytest.mark.parametrize("pattern", [r"(\w+\s?)+:", "(x+x+)+y", "(a|aa)+$", "^(.*?,){11}P"])
def test_a_pattern_that_backtracking_would_never_finish_ends(tmp_path: Path, pattern: str) -> None:
    screen = screen_of(tmp_path, regex(pattern, "reject"))

    assert screen.check("acme", Job(prompt="aaaa xxxx 1,2,3, " * 20_000)).verdict is Verdict.PASS


def test_every_match_of_a_long_text_is_found_also_at_the_edges_of_windows(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex(r"\bné+d\b", name="need"))
    text = "".join(f"{'.' * gap}néééd " for gap in range(200))

    assert redacted(screen, text) == text.replace("néééd", "[redacted:need]")
    assert redacted(screen, "." * 1022 + "nééd.") == "." * 1022 + "[redacted:need]."
    assert redacted(screen, "." * 1020 + "xnééd") == "." * 1020 + "xnééd"
    assert redacted(screen, "." * 2046 + "néédx") == "." * 2046 + "néédx"


def test_a_match_is_sought_within_two_windows(tmp_path: Path) -> None:
    """Without the bound, a pattern that reads to the end of the text for each match would take quadratic time."""
    screen = screen_of(tmp_path, regex("a[^z]*z|b+", name="long"))

    assert redacted(screen, f"a{'.' * 1000}z") == "[redacted:long]"
    assert redacted(screen, f"a{'.' * 3000}z") == f"a{'.' * 3000}z"
    assert redacted(screen, "b" * 5000) == "[redacted:long]"


def test_anchors_mean_the_whole_text(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, regex(r"^begin|end$", name="edge"))
    middle = " begin end " * 500

    assert redacted(screen, f"begin{middle}end") == f"[redacted:edge]{middle}[redacted:edge]"
