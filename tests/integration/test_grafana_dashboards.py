"""The dashboards of deploy/grafana: written by their script, on metrics and labels that exist, valid for promtool."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from console.publish import ROOT
from telemetry.metrics import Metrics
from tests.integration.test_prometheus_rules import METRIC, OF_OTHERS, names_of
from tests.prometheus_tools import promtool

FOLDER = ROOT / "deploy" / "grafana"
NAMES = ("delivery", "engine", "enrichment", "fleet", "gateway", "kafka", "rollout")
LABEL = re.compile(r"\{\{(\w+)\}\}")
OF_PROMETHEUS = {"instance", "gpu"}
"""Labels that Prometheus adds to each series, and one of dcgm-exporter's."""


def targets(name: str) -> list[dict[str, Any]]:
    panels = json.loads((FOLDER / f"{name}.json").read_text())["panels"]
    return [target for panel in panels for target in panel["targets"]]


def labels() -> dict[str, set[str]]:
    """The labels of each sample, by its name."""
    metrics = [metric for metric in vars(Metrics()).values() if hasattr(metric, "_labelnames")]
    return {
        sample: set(metric._labelnames)
        for metric in metrics
        for family in metric.describe()
        for sample in names_of(family)
    }


def test_the_files_are_those_that_the_script_writes() -> None:
    written: dict[Path, str] = runpy.run_path(str(FOLDER / "dashboards.py"))["documents"]()

    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == {
        path.name: text for path, text in written.items()
    }, "run `python deploy/grafana/dashboards.py`"
    assert sorted(path.stem for path in written) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_query_asks_for_metrics_and_labels_that_the_program_has(name: str) -> None:
    known = labels()
    for target in targets(name):
        asked = set(METRIC.findall(target["expr"]))
        assert asked, target
        assert asked <= known.keys() | OF_OTHERS, target
        shown = set(LABEL.findall(target["legendFormat"]))
        has = set.union(OF_PROMETHEUS, *(known.get(metric, set()) for metric in asked))
        assert shown <= has, target
        for label in shown:
            assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), target


def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    queries = [target["expr"].replace("$__rate_interval", "1m") for name in NAMES for target in targets(name)]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run(
        [promtool(), "check", "rules", file], capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_no_two_panels_of_a_dashboard_overlap_and_their_ids_differ(name: str) -> None:
    panels = json.loads((FOLDER / f"{name}.json").read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len({panel["id"] for panel in panels}) == len(places) == len(panels) >= 7
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
