"""The peers' programs sign what consumers verify, and the bench counts lost and doubled callbacks."""

from __future__ import annotations

import ast
import base64
import runpy
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from bench.peers import NONE, with_best
from bench.peers import __main__ as peers
from bench.peers.__main__ import PEERS, SYSTEMS, Measured, System


def test_each_peer_has_its_program_and_each_program_its_peer() -> None:
    programs = {file.name for file in SYSTEMS.glob("*.py")} - {"callback.py"}
    assert {peer.file for peer in PEERS} == programs
    for name in programs:
        assert ast.get_docstring(ast.parse((SYSTEMS / name).read_text(encoding="utf-8"))), f"{name} names its settings"


def test_the_callback_of_a_peer_is_genuine_for_standard_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBACK_URL", "http://127.0.0.1:1/hook")
    program = runpy.run_path(str(SYSTEMS / "callback.py"))
    job = program["job_of"](7, 12.5)
    url, body, headers = program["signed"](job)
    event = Webhook(base64.b64encode(program["KEY"]).decode()).verify(body, headers)
    assert (url, event["data"]) == ("http://127.0.0.1:1/hook", {"id": "7-12.500000", "text": "Where is case 7?"})


class Arriving:
    """Receivers whose next calls give these arrivals; later calls give none."""

    def __init__(self, *calls: list[str]) -> None:
        self._calls = list(calls)

    def arrivals(self) -> list[tuple[str, float]]:
        return [(name, 0.0) for name in (self._calls.pop(0) if self._calls else [])]


class Killed(System):
    """A system without processes, which counts its kills."""

    kills = 0

    def start(self) -> None: ...

    def kill(self) -> None:
        self.kills += 1


@pytest.mark.parametrize(
    ("calls", "lost", "doubled"),
    [
        ([["a", "b"], ["c", "d"]], 0, 0),
        ([["a", "b"], ["b", "c", "d"]], 0, 1),
        ([["a"], ["b"], []], 2, 0),
        ([["a", "b"], ["c", "d"], ["a", "a", "d"]], 0, 2),
    ],
)
def test_lost_and_doubled_jobs_are_counted_over_the_kills(
    monkeypatch: pytest.MonkeyPatch, calls: list[list[str]], lost: int, doubled: int
) -> None:
    monkeypatch.setattr(peers, "STILL_SECONDS", 0.05)
    monkeypatch.setattr(peers, "LATE_SECONDS", 0.0)
    system = Killed("x", (), lambda jobs, rate: None, {}, Path("log"))
    arriving: Any = Arriving(*calls)
    assert peers._killed(system, arriving, 4, 2) == (lost, doubled)
    assert system.kills == 2


def test_a_row_has_the_percentiles_of_the_times() -> None:
    known = Measured("arq", 1234.5, 400.4, 80.6, [float(number) for number in range(101)], 1, 2).row()
    assert known == ("arq", "1,234", "400", "50.0", "99.0", "81", "1", "2")


def test_the_best_figure_of_a_column_is_bold_whoever_has_it() -> None:
    rows = [["arq", "1,234", "50.0", "0"], ["Postback", "900", "20.5", "0"], ["Svix", NONE, NONE, NONE]]
    assert with_best(rows, (None, 1, -1, -1)) == [
        ["arq", "**1,234**", "50.0", "**0**"],
        ["Postback", "900", "**20.5**", "**0**"],
        ["Svix", NONE, NONE, NONE],
    ]
