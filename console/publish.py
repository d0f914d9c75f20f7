"""Writes what is said of settings and metrics anew, from where they are declared: `python -m console.publish`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from console.catalogue import Section, names, sections
from telemetry.metrics import Metrics

ROOT = Path(__file__).parents[1]

_SETTINGS = """# Settings

Every environment variable that Postback reads. Generated from the settings classes by `python -m console.publish`; a
test holds it to them. What to do with them is in [DEPLOY](DEPLOY.md).

A variable that no class knows is told at the start of each command, with the nearest name. A value that is refused is
named by its variable, and never shown. Where a name ends in `__*`, any name may follow. A part of a class, such as
`POSTBACK_KAFKA__…`, may be given as a whole, too: `POSTBACK_KAFKA` as JSON.
"""
_METRICS = """# Metrics

What every worker and delivery process has at `/metrics`. Generated from
[telemetry/metrics.py](../telemetry/metrics.py) by `python -m console.publish`; a test holds it to that. Which of them
to look at when is in [DEPLOY](DEPLOY.md). No label names a tenant or a URL.

| metric | kind | labels | what it says |
| --- | --- | --- | --- |
"""


def documents() -> dict[Path, str]:
    """Every file's text by its path; the same declarations always give the same texts."""
    return {
        ROOT / "docs" / "SETTINGS.md": _SETTINGS + "".join(map(_section, sections())),
        ROOT / "docs" / "METRICS.md": _METRICS + "".join(f"{row}\n" for row in _metrics()),
        ROOT / "console" / "published" / "variables.txt": "".join(f"{name}\n" for name in names()),
    }


def main() -> None:
    """Write the files."""
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


def _section(section: Section) -> str:
    rows = [
        f"| `{each.name}` | {f'`{each.default}`' if each.default else ''} | {each.allowed} | {_cell(each.meaning)} |\n"
        for each in section.variables
    ]
    head = f"\n## `{section.prefix}…`\n\n{section.about}\n\n| variable | default | allowed | what it is |\n"
    return f"{head}| --- | --- | --- | --- |\n{''.join(rows)}"


def _metrics() -> Iterable[str]:
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            [family] = metric.describe()
            kind = {Gauge: "gauge", Histogram: "histogram"}.get(type(metric), "counter")
            name = f"{family.name}_total" if kind == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            yield f"| `{name}` | {kind} | {labels} | {_cell(family.documentation)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
