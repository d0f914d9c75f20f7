"""Variables, commands and flags in the chart and compose.yaml, compared with the program's; the workflows' syntax."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.shared.variables import complaints
from tests.go_tools import ACTIONLINT, ensure
from tests.integration.deployment import VALUE_SETS, Manifest, compose_model, own_containers, own_services, render

# The first run builds Helm or compose-go's command, which takes minutes.
pytestmark = pytest.mark.timeout(1800)

POSTBACK = Path(sys.executable).with_name("postback")


@pytest.fixture(scope="module")
def compose() -> Manifest:
    return compose_model()


def environments(compose: Manifest) -> Iterator[tuple[str, set[str]]]:
    for name, service in own_services(compose).items():
        yield f"compose.yaml, {name}", set(service["environment"])
    for name, values in VALUE_SETS.items():
        for container in own_containers(render(values)):
            yield f"the chart with {name}", {entry["name"] for entry in container["env"]}


def test_every_variable_that_is_set_is_one_that_the_program_reads(compose: Manifest) -> None:
    for where, variables in environments(compose):
        ours = {variable for variable in variables if variable.startswith("POSTBACK_")}
        assert {"POSTBACK_ENV", "POSTBACK_KAFKA__BOOTSTRAP_SERVERS"} <= ours, where
        assert complaints(dict.fromkeys(ours, "")) == [], f"{where} sets variables that no setting reads"


def commands(compose: Manifest) -> Iterator[tuple[str, list[str]]]:
    for name, service in own_services(compose).items():
        if not service.get("entrypoint"):  # if a service has an entrypoint, its command is for a shell
            yield f"compose.yaml, {name}", service["command"]
    for name, values in VALUE_SETS.items():
        for container in own_containers(render(values)):
            yield f"the chart with {name}", container["args"]


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [POSTBACK, *command, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"},
    )
    assert done.returncode == 0, f"`postback {' '.join(command)}` is no command:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_command_and_flag_that_is_used_is_one_of_the_program(compose: Manifest) -> None:
    for where, words in commands(compose):
        command = [*_until_a_flag(words)]
        offered = set(re.findall(r"--[a-z][a-z-]*", help_of(*command)))
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= offered, f"{where}: `postback {' '.join(words)}`"


def _until_a_flag(words: list[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("-"):
            return
        yield word


def test_the_keyring_service_may_run_again_and_leaves_the_keys_alone(compose: Manifest, tmp_path: Path) -> None:
    command = [POSTBACK, *compose["services"]["keyring"]["command"]]
    keyring = tmp_path / "keyring.json"
    env = {**os.environ, "POSTBACK_KEYRING": str(keyring)}

    first = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    made = keyring.read_bytes()
    second = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert keyring.read_bytes() == made


WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"


@pytest.mark.timeout(1800)  # the first run builds actionlint
def test_the_workflows_have_no_fault_that_actionlint_finds() -> None:
    # Without shellcheck, which not every machine has: the result is the same everywhere.
    command: list[str | Path] = [ensure(ACTIONLINT), "-shellcheck=", "-pyflakes=", *sorted(WORKFLOWS.glob("*.yml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_each_push_of_a_release_is_attested_by_the_digest_that_its_notes_name() -> None:
    jobs: dict[str, Any] = yaml.safe_load((WORKFLOWS / "release.yml").read_text())["jobs"]
    pushing = {name: job for name, job in jobs.items() if job.get("permissions", {}).get("packages") == "write"}
    assert set(pushing) == {"images", "chart"}
    for job in pushing.values():
        assert job["permissions"] | {"id-token": "write", "attestations": "write"} == job["permissions"]
        [push] = [step for step in job["steps"] if "digest=" in step.get("run", "")]
        [attest] = [step for step in job["steps"] if "attest-build-provenance" in step.get("uses", "")]
        assert attest["with"]["subject-digest"] == f"${{{{ steps.{push['id']}.outputs.digest }}}}"
        assert attest["with"]["push-to-registry"] is True
        assert "@$digest" in push["run"].split("> notes/")[0].split('> "notes/')[0]
    assert set(jobs["notes"]["needs"]) >= set(pushing)
