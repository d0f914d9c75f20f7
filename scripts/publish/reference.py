"""Writes the generated reference pages from the declarations in the code: `python -m scripts.publish`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import starmap
from pathlib import Path

from prometheus_client import Gauge
from prometheus_client.metrics import MetricWrapperBase

from scripts.publish import chart_reference, chart_schema, job_reference, licences
from scripts.publish.catalogue import Section, names, sections
from scripts.publish.markdown import table
from telemetry.actions import SECTIONS, Action
from telemetry.metrics import Metrics
from telemetry.series import KnownGauge, QuickHistogram

ROOT = Path(__file__).parents[2]

REFERENCE = ROOT / "docs" / "reference"
RULES = ROOT / "helm" / "postback" / "files" / "prometheus" / "postback.rules.yml"

MEASURED = ROOT / "helm" / "postback" / "files" / "prometheus" / "measured.json"
"""The seconds from each fault to its alert, written by tests/faults/test_deaths_ring.py."""

_GENERATED = "`python -m scripts.publish` writes this page; a test compares it with the code."

_SETTINGS = f"""# Settings

Every environment variable that Postback reads.
{_GENERATED}
[DEPLOY](../DEPLOY.md) explains which ones to set.

At its start each command names the variables that no settings class knows, with the nearest known name.
An error about a refused value names the variable and never shows the value.
Any name may follow where a variable ends in `__*`.
A group such as `POSTBACK_KAFKA__…` may also be given as JSON in one variable, here `POSTBACK_KAFKA`.
"""
_METRICS = f"""# Metrics

The metrics of every worker and delivery process at `/metrics`, declared in
[telemetry/metrics.py](../../telemetry/metrics.py).
{_GENERATED}
[DEPLOY](../DEPLOY.md) explains which ones to watch.
No label names a tenant or a URL.

"""
_LOG_ACTIONS = f"""# Log actions

Every action that a log line may name, declared in [telemetry/actions.py](../../telemetry/actions.py).
{_GENERATED}

A JSON line has the action as `event.action`, beside `message`, `log.level` and fields such as `postback.job_id`.
An action is stable while its message may change: alert on actions.
The level is the highest that the action is logged with; `POSTBACK_LOG_LEVEL` hides the levels below it.
"""


OPERATIONS = ROOT / "docs" / "OPERATIONS.md"
PROMISES = {
    "PostbackRoleDown worker": "A worker answers jobs",
    "PostbackRoleDown delivery": "Delivery calls back",
    "PostbackRoleDown gateway": "The gateway takes jobs",
    "PostbackRoleDown exporter": "The exporter counts",
    "PostbackNoDelivery": "Waiting callbacks have a process",
    "PostbackDoorErrors": "The store takes every job",
    "PostbackKafkaAway": "Kafka answers",
    "PostbackBrokerAway": "Each record has all its copies",
    "PostbackFiguresStale": "The figures are fresh",
    "PostbackStoreAway": "PostgreSQL answers",
    "PostbackFilesAway": "The storage of files (S3) answers",
    "PostbackRedisAway": "Redis answers",
    "PostbackModelServerAway": "The model server answers",
}
"""The promise of each alert of a death; tests/faults/test_deaths_ring.py measures the same alerts."""
_MEASURED_TABLE = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->\n)", re.DOTALL)


def documents() -> dict[Path, str]:
    """Map each file's path to its text. The same declarations always give the same texts."""
    return {
        REFERENCE / "settings.md": _SETTINGS + "".join(_settings()),
        REFERENCE / "metrics.md": _METRICS + table(("metric", "kind", "labels", "meaning"), _metrics()),
        REFERENCE / "jobs.md": job_reference.page(),
        REFERENCE / "licences.md": licences.page(),
        REFERENCE / "log-actions.md": _LOG_ACTIONS + "".join(starmap(_actions, SECTIONS.items())),
        ROOT / "cli" / "shared" / "published" / "variables.txt": "".join(f"{name}\n" for name in names()),
        OPERATIONS: _MEASURED_TABLE.sub(_measured_table(), OPERATIONS.read_text(encoding="utf-8")),
        chart_reference.CHART / "values.schema.json": chart_schema.schema(),
        **chart_reference.documents(),
    }


def main() -> None:
    """Write all files."""
    for path, text in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _measured_table() -> str:
    """Return the table of the seconds from each fault to its alert."""
    seconds = json.loads(MEASURED.read_text(encoding="utf-8"))
    rows = (
        (
            *(promise, f"[{alert}](#{alert.split()[0].lower()})", str(seconds["SIGKILL"][alert])),
            str(seconds["SIGSTOP"].get(alert, seconds["read-only"].get(alert, ""))),
        )
        for alert, promise in PROMISES.items()
    )
    return table(("promise", "alert", "killed", "stopped"), rows)


def _settings() -> Iterator[str]:
    """Yield the page's sections. Settings that several parts of a group have alike stand in a section before them."""
    groups: dict[str, list[Section]] = {}
    for section in sections():
        group = section.prefix.removesuffix("__").rpartition("__")[0]
        groups.setdefault(group if section.is_part and group else section.prefix, []).append(section)
    for group, parts in groups.items():
        owners: dict[Row, list[str]] = {}
        for part in parts:
            for row in _rows(part):
                owners.setdefault(row, []).append(part.prefix.removesuffix("__").rpartition("__")[2])
        for several in sorted({tuple(each) for each in owners.values() if len(each) > 1}, key=len, reverse=True):
            alike = [row for row, whose in owners.items() if tuple(whose) == several]
            about = "Settings that each of these has: its name stands in the place of `*`."
            yield _section(f"{group}__*__", about, alike, f"{group}__{{{','.join(several)}}}__")
        for part in parts:
            if own := [row for row in _rows(part) if len(owners[row]) == 1]:
                yield _section(part.prefix, part.about, own)


Row = tuple[str, str, str, str]


def _rows(section: Section) -> Iterator[Row]:
    """Yield the end of each setting's name, its default, the allowed values and the meaning.

    A mapping and its entries, each by its name, are one setting.
    """
    names = {each.name for each in section.variables}
    for each in section.variables:
        if not each.name.endswith("__*"):
            entries = f"`, `…{_ENTRY}" if f"{each.name}{_ENTRY}" in names else ""
            default = f"`{each.default}`" if each.default else ""
            yield each.name.removeprefix(section.prefix) + entries, default, each.allowed, each.meaning


_ENTRY = "__*"


def _section(prefix: str, about: str, rows: Iterable[Row], title: str | None = None) -> str:
    shown = ((f"`{prefix}{name}`", *more) for name, *more in rows)
    return f"\n## `{title or prefix}…`\n\n{about}\n\n" + table(("variable", "default", "allowed", "meaning"), shown)


def _metrics() -> Iterable[tuple[str, ...]]:
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            kind = {Gauge: "gauge", KnownGauge: "gauge", QuickHistogram: "histogram"}.get(type(metric), "counter")
            name = f"{family.name}_total" if kind == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            yield f"`{name}`", kind, labels, family.documentation


def _actions(title: str, actions: Mapping[str, Action]) -> str:
    rows = ((f"`{name}`", action.level, action.event, action.remedy) for name, action in actions.items())
    return f"\n## {title}\n\n" + table(("action", "level", "event", "next step"), rows)


if __name__ == "__main__":
    main()
