"""The generated documents match the current code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from console.catalogue import sections
from console.publish import ROOT, documents
from schemas.outcome import Outcome
from telemetry.metrics import Metrics
from workers.delivery.post import FailureReason
from workers.stage.settler_state import SettlerState

READ_ALONE = re.compile(r"environ(?:\.get\(|\[)\"(POSTBACK_[A-Z_]+)\"")


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_the_generated_documents_are_those_in_the_repository(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == documents()[path], "run: python -m console.publish"


def test_each_setting_has_a_description() -> None:
    variables = [variable for section in sections() for variable in section.variables]

    assert len({variable.name for variable in variables}) == len(variables) > 100
    assert [variable.name for variable in variables if not variable.meaning] == []


def test_no_code_reads_a_variable_that_is_not_listed() -> None:
    listed = {variable.name for section in sections() for variable in section.variables}
    packages = (
        "console",
        "devkit",
        "gateway",
        "operators",
        "producers",
        "schemas",
        "screening",
        "telemetry",
        "workers",
    )
    sources = [path.read_text() for package in packages for path in (ROOT / package).rglob("*.py")]
    read = {name for source in sources for name in READ_ALONE.findall(source)}

    assert "POSTBACK_LOG_LEVEL" in read
    assert read <= listed


def test_the_text_of_a_metric_lists_the_values_of_its_labels() -> None:
    said = {family.name: family.documentation for family in Metrics().registry.collect()}

    assert all(outcome in said["postback_jobs"] for outcome in Outcome)
    assert all(reason in said["postback_callbacks"] for reason in FailureReason)
    assert all(
        state.value in said["postback_repairs"]
        for state in SettlerState
        if state not in (SettlerState.READY, SettlerState.SETTLING)
    )
