"""The workflows: their syntax, and the provenance of all that a release pushes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.go_tools import ACTIONLINT, ensure

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
