"""The dashboards come from their script, and ask for existing metrics and labels in valid PromQL."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.dashboards import __main__ as dashboards
from scripts.dashboards.__main__ import FOLDER
from scripts.publish.reference import ROOT
from telemetry.metrics import Metrics
from tests.integration.test_prometheus_rules import OF_OTHERS, names_of
from tests.prometheus_tools import promtool
from tests.promql import kept_labels, selectors

NAMES = ("delivery", "engine", "enrichment", "fleet", "gateway", "kafka", "rollout")
LABEL = re.compile(r"\{\{(\w+)\}\}")
OF_EACH_SERIES = {"instance", "job"}
"""Labels that Prometheus adds to each series."""
JOBS = (ROOT / "helm" / "postback" / "files" / "prometheus" / "prometheus.yml").read_text()
"""Prometheus's configuration, which names the jobs."""


def panels(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())["panels"]
    return found


def targets(name: str) -> list[dict[str, Any]]:
    """The queries of a dashboard, with variables filled in as Grafana fills them."""
    return [
        {**target, "expr": target["expr"].replace("$__rate_interval", "1m")}
        for panel in panels(name)
        for target in panel["targets"]
    ]


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric's labels, and its description, which names the values of labels with few values."""

    labels: set[str]
    text: str


def declared() -> dict[str, Declared]:
    """Map each sample's name to the labels and the description that the program declares."""
    metrics = [metric for metric in vars(Metrics()).values() if hasattr(metric, "_labelnames")]
    ours = {
        sample: Declared({*metric._labelnames, *OF_EACH_SERIES}, family.documentation)
        for metric in metrics
        for family in metric.describe()
        for sample in names_of(family)
    }
    buckets = {name: replace(has, labels={*has.labels, "le"}) for name, has in ours.items() if name.endswith("_bucket")}
    return {**ours, **buckets, **dict.fromkeys(OF_OTHERS, Declared({"gpu", *OF_EACH_SERIES}, ""))}


def test_the_files_are_those_that_the_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)  # when Python runs a script, it also adds the script's folder to the path
    written: dict[Path, str] = dashboards.documents()

    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == {
        path.name: text for path, text in written.items()
    }, "run `python -m scripts.dashboards`"
    assert sorted(path.stem for path in written) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_query_asks_for_metrics_labels_and_values_that_the_program_has(name: str) -> None:
    known = declared()
    for target in targets(name):
        asked = selectors(target["expr"])
        assert asked, target
        for selector in asked:
            assert selector.metric in known, target
            has = known[selector.metric]
            assert selector.values.keys() <= has.labels, target
            for label, value in selector.values.items():
                assert re.search(rf"\b{re.escape(value)}\b", JOBS if label == "job" else has.text), target


@pytest.mark.parametrize("name", NAMES)
def test_each_legend_shows_all_labels_that_its_query_keeps_and_no_others(name: str) -> None:
    for target in targets(name):
        kept = kept_labels(target["expr"])
        assert kept is not None, target
        assert set(LABEL.findall(target["legendFormat"])) == kept - {"le"}, target
        for selector in selectors(target["expr"]):
            assert kept <= declared()[selector.metric].labels, target


def test_promtool_accepts_every_query(tmp_path: Path) -> None:
    queries = [target["expr"] for name in NAMES for target in targets(name)]
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
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels(name)}
    assert len({panel["id"] for panel in panels(name)}) == len(places) == len(panels(name)) >= 7
    assert {panel["datasource"]["uid"] for panel in panels(name)} == {"${datasource}"}
