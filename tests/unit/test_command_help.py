"""The help of the `postback` command: every command is in a group and has examples that work."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from click.testing import CliRunner
from typer.main import get_command

from console.help import EXAMPLES
from console.main import app
from tests.postback_command import postback_here
from tests.process_state import state_kept

WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def commands_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


ROOT: Any = get_command(app)  # the command is built once, since building it takes as long as a whole test here
COMMANDS = dict(commands_of(ROOT))


def test_every_command_has_an_example_and_every_example_a_command() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("words", COMMANDS)
def test_the_examples_of_a_command_are_parsed_by_it(words: str) -> None:
    for example in EXAMPLES[words]:
        typed = shlex.split(example)
        start = typed.index("postback") + 1
        named = words.split()
        assert typed[start : start + len(named)] == named
        arguments = typed[start + len(named) :]
        end = arguments.index(">") if ">" in arguments else None
        COMMANDS[words].make_context(words, arguments[:end])  # raises if an option is unknown or missing


@pytest.mark.parametrize("words", COMMANDS)
def test_the_help_of_a_command_shows_its_examples(words: str) -> None:
    with state_kept():
        shown = CliRunner().invoke(ROOT, [*words.split(), "--help"], env=WIDE)
    assert shown.exit_code == 0
    for example in EXAMPLES[words]:
        assert f" {example} " in shown.stdout


@pytest.mark.parametrize("words", COMMANDS)
def test_the_short_option_asks_for_the_help_of_every_command(words: str) -> None:
    command = ROOT
    context = command.make_context("postback", [], resilient_parsing=True)
    for word in words.split():
        command = command.commands[word]
        context = command.make_context(word, [], parent=context, resilient_parsing=True)
    assert set(command.get_help_option_names(context)) == {"-h", "--help"}


@pytest.mark.parametrize("words", ["", "keys", "submit"])
def test_the_short_option_shows_the_same_help_as_the_long_one(words: str) -> None:
    long, short = (postback_here(*words.split(), option, env=WIDE) for option in ("--help", "-h"))
    assert (short.returncode, short.stdout) == (0, long.stdout)


def test_the_help_shows_every_command_in_a_group() -> None:
    lines = postback_here("-h", env=WIDE).stdout.splitlines()
    titles = [line.strip("╭─╮ ") for line in lines if line.startswith("╭")]
    assert titles == ["Options", "Run a fleet", "Send work", "Take results", "Operate a fleet", "Develop"]


def test_a_paragraph_of_the_help_fills_the_lines_of_a_wide_terminal() -> None:
    shown = postback_here("submit", "-h", env=WIDE).stdout
    assert "All lines are checked before the first is sent; an invalid one stops all, unless --skip-invalid" in shown


def test_the_version_is_that_of_the_installed_package() -> None:
    done = postback_here("--version", env={})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"postback {version('postback')}\n", "")
