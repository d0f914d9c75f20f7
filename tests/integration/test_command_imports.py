"""The packages that light commands import: every start of a command pays for each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.fleet.roles import ROLES
from cli.main import COMMANDS
from tests.integration.test_install import command, without_extras

OURS = {"cli", "gateway", "producers", "schemas", "screening", "telemetry", "workers"}
OF_A_HELP = {"annotated_doc", "shellingham", "typer"}
OF_SETTINGS = {
    *("annotated_types", "dotenv", "pydantic", "pydantic_core", "pydantic_settings"),
    *("typing_extensions", "typing_inspection"),
}
OF_LOGS = {"greenlet", "idna", "opentelemetry", "structlog", "typing_extensions"}
"""A role begins its log before it reads its options."""
OF_KEYS = {"cryptography", "nacl"}


def imported(*arguments: str, **variables: str | Path) -> set[str]:
    """Return the packages that a command imports, without the standard library's, our own and private ones."""
    code = """
import atexit
before = set(sys.modules)
def show():
    names = {name.partition(".")[0] for name in sys.modules.keys() - before if sys.modules[name] is not None}
    print("imported", *sorted(names - sys.stdlib_module_names), file=sys.__stderr__)
atexit.register(show)
from cli.main import run
run()
"""
    done = without_extras(code, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return {name for name in done.stderr.splitlines()[-1].split()[1:] if not name.startswith("_")} - OURS


def test_the_list_of_commands_imports_none_of_them() -> None:
    assert imported("--help") <= OF_A_HELP


@pytest.mark.parametrize("words", ["cancel", "submit", "topics create", "keys show", "doctor"])
def test_the_help_of_a_command_imports_nothing_that_only_its_work_needs(words: str) -> None:
    assert words.split()[0] in COMMANDS
    assert imported(*words.split(), "--help") <= OF_A_HELP


@pytest.mark.parametrize("role", sorted(ROLES))
def test_the_help_of_a_role_imports_logs_and_nothing_that_only_its_work_needs(role: str) -> None:
    assert imported(role, "--help") <= OF_A_HELP | OF_LOGS


def test_the_keys_are_shown_without_clients_and_servers(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.json"
    assert command("keys", "init", POSTBACK_KEYRING=keyring).returncode == 0
    assert imported("keys", "show", POSTBACK_KEYRING=keyring) <= OF_A_HELP | OF_SETTINGS | OF_LOGS | OF_KEYS


def test_a_worker_starts_without_the_check_of_json_schemas() -> None:
    """With its optional grammars, `jsonschema` took 1.5 of the 2.9 seconds that a worker needed for its imports."""
    code = "import sys, workers.roles.worker; print('jsonschema' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
