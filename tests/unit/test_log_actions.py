"""The catalogue of log actions and the source name the same actions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.publish import ROOT
from telemetry.action import Action
from telemetry.actions import SECTIONS

PACKAGES = ("console", "devkit", "gateway", "operators", "producers", "schemas", "screening", "telemetry", "workers")
LEVELS = ["debug", "info", "warning", "error", "critical"]
LEVEL_OF = {level: level for level in LEVELS} | {"exception": "error"}
KEBAB = re.compile(r"[a-z]+(-[a-z]+)+")

CATALOGUE: dict[str, Action] = {name: action for actions in SECTIONS.values() for name, action in actions.items()}
CALLS_IN_SOURCE = """
log.info("Ready.", action="ready")
log.exception("Broken.", action="broken")
say("Tried.", action="tried")
parser.add_argument("--all", action="store_true")
"""
INDIRECT_SOURCE = '''
"""not-a-constant of its own"""
SAID = {"a": ("handler-raised", "The handler raised.")}
def say(action): log.error("It raised.", action=action)
'''


def logged_in(source: str) -> Iterator[tuple[str, str | None]]:
    """Each action that this source logs, with its level where the call shows it.

    If a call passes its action as a variable, each hyphenated constant of the module counts as an action.
    """
    tree = ast.parse(source)
    is_indirect = False
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        for keyword in node.keywords:
            if keyword.arg != "action" or called == "add_argument":
                continue
            if isinstance(keyword.value, ast.Constant):
                yield str(keyword.value.value), LEVEL_OF.get(called or "")
            else:
                is_indirect = True
    if is_indirect:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEBAB.fullmatch(node.value):
                yield node.value, None


@pytest.fixture(scope="module")
def logged() -> list[tuple[str, str | None]]:
    """Each action that the program logs, with its level where the call shows it; the source is parsed once."""
    paths: list[Path] = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [found for path in paths for found in logged_in(path.read_text(encoding="utf-8"))]


def test_the_search_finds_actions_in_calls_and_outside_of_them() -> None:
    assert set(logged_in(CALLS_IN_SOURCE)) == {("ready", "info"), ("broken", "error"), ("tried", None)}
    assert set(logged_in(INDIRECT_SOURCE)) == {("handler-raised", None)}


def test_the_catalogue_has_each_action_that_the_source_logs_and_no_other(logged: list[tuple[str, str | None]]) -> None:
    actions = {action for action, _ in logged}

    assert sorted(actions - CATALOGUE.keys()) == [], (
        "declare them in telemetry/actions.py; run python -m console.publish"
    )
    assert sorted(CATALOGUE.keys() - actions) == [], "no line logs these: remove them from telemetry/actions.py"


def test_each_actions_level_is_the_highest_that_the_source_logs_it_with(logged: list[tuple[str, str | None]]) -> None:
    highest: dict[str, str] = {}
    for action, level in logged:
        if level is not None:
            highest[action] = max(level, highest.get(action, "debug"), key=LEVELS.index)

    assert len(highest) > 50
    assert highest == {action: CATALOGUE[action].level for action in highest}


def test_an_action_stands_in_only_one_section() -> None:
    assert len(CATALOGUE) == sum(map(len, SECTIONS.values()))


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_action_states_the_event_and_the_next_step_in_sentences(name: str) -> None:
    action = CATALOGUE[name]

    assert action.event.endswith(".")
    assert action.remedy.endswith(".") or not action.remedy
