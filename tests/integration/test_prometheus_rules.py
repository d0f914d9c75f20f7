"""Prometheus' rules pass promtool's tests and use existing metrics; each alert has a runbook."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from scripts.publish.reference import ROOT
from telemetry.metrics import Metrics
from tests.prometheus_tools import promtool

FOLDER = ROOT / "helm" / "postback" / "files" / "prometheus"
RULES = "postback.rules.yml"
TESTS = "postback.rules_test.yml"
OF_OTHERS = {"DCGM_FI_DEV_GPU_UTIL", "up"}
"""Metrics of NVIDIA's dcgm-exporter, and of Prometheus itself."""
METRIC = re.compile(r"\b(?:postback_\w+|DCGM_\w+|up\b)")
RECORDED = re.compile(r"\bpostback:[\w:]+")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / RULES).read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("arguments", [("check", "rules", "--lint-fatal", RULES), ("test", "rules", TESTS)])
def test_promtool_accepts_the_rules_and_their_tests_pass(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [promtool(), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_to_fire_to_be_silent_before_and_in_a_healthy_fleet() -> None:
    tested = yaml.safe_load((FOLDER / TESTS).read_text())["tests"]
    shown = [
        (test["name"], case["alertname"], bool(case["exp_alerts"]))
        for test in tested
        for case in test["alert_rule_test"]
    ]

    for alert in alerts():
        assert {(alert, alert, True), (alert, alert, False), ("a healthy fleet", alert, False)} <= set(shown)


def test_each_rule_asks_for_metrics_that_the_program_has() -> None:
    exposed = {sample for family in Metrics().registry.collect() for sample in names_of(family)}
    recorded = {rule["record"] for rule in rules() if "record" in rule}

    for rule in rules():
        assert set(METRIC.findall(rule["expr"])) <= exposed | OF_OTHERS, rule
        assert set(RECORDED.findall(rule["expr"])) <= recorded, rule
        assert METRIC.findall(rule["expr"]) or RECORDED.findall(rule["expr"])


def names_of(family: Any) -> set[str]:
    """The names of a metric's samples."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
    return {family.name + suffix for suffix in suffixes}


def test_each_alert_has_a_runbook_section() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "OPERATIONS.md").read_text(), re.MULTILINE)
    anchors = {f"docs/OPERATIONS.md#{heading.lower()}" for heading in headings}

    assert {alert["annotations"]["runbook"] for alert in alerts().values()} == {
        anchor for anchor in anchors if "#postback" in anchor
    }
    for alert in alerts().values():
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
