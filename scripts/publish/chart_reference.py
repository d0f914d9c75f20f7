"""Makes the chart's reference page, the engines' names in the chart, and the files copied into the chart.

`python -m scripts.publish` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from pathlib import Path
from typing import Any

import yaml

from scripts.publish.markdown import table
from workers.egress.addresses import SPECIAL_IPV4, SPECIAL_IPV6
from workers.engines import ENGINES
from workers.engines.registry import engine_settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "postback"
DASHBOARDS = ROOT / "helm" / "postback" / "files" / "dashboards"

NOT_GLOBAL_UNICAST = ("::/3", "4000::/2", "8000::/1")
"""The parts of IPv6 that have no global unicast addresses (RFC 4291, section 2.5.4)."""

_PAGE = """# Chart values

Every value of the chart in [helm/postback](../../helm/postback), with its default.
`python -m scripts.publish` writes this page from the comments of `values.yaml`; a test compares it with them.
[DEPLOY](../DEPLOY.md#kubernetes-the-helm-chart) explains the chart.
[helm/values](../../helm/values) has whole examples.
`values.schema.json`, made from them too, refuses unknown names and impossible values.
"""
_LINE = re.compile(r"(?P<indent> *)(?:# ?(?P<comment>.*)|(?P<name>[A-Za-z]+):.*)")


class ValueUnexplained(Exception):  # noqa: N818 - named after the file's fault
    """A value of values.yaml has no comment above it."""


class PlaceGone(Exception):  # noqa: N818 - named after the file's fault
    """A file has no line, or several, where the engines' names belong."""


@dataclass(frozen=True, slots=True)
class ChartValue:
    """A value or a section of values. `default` is the value that YAML's parser returns."""

    path: tuple[str, ...]
    meaning: str
    default: Any
    is_section: bool


def documents() -> dict[Path, str]:
    """Map each file's path to its text. Raises ValueUnexplained and PlaceGone."""
    copies = {CHART / "files" / "dashboards" / path.name: path for path in sorted(DASHBOARDS.glob("*.json"))}
    return {
        ROOT / "docs" / "reference" / "chart.md": page((CHART / "values.yaml").read_text(encoding="utf-8")),
        CHART / "files" / "special-networks.json": json.dumps(special_networks(), indent=1) + "\n",
        **{copy: path.read_text(encoding="utf-8") for copy, path in copies.items()},
        **_with_engine_names(),
    }


def special_networks() -> dict[str, list[str]]:
    """Return the networks that the egress guard refuses, for the chart's NetworkPolicy; no network contains another."""
    ipv4 = [IPv4Network(cidr) for cidr, _ in SPECIAL_IPV4]
    ipv6 = [IPv6Network(cidr) for cidr in (*NOT_GLOBAL_UNICAST, *(cidr for cidr, _ in SPECIAL_IPV6))]
    return {"ipv4": list(map(str, collapse_addresses(ipv4))), "ipv6": list(map(str, collapse_addresses(ipv6)))}


def page(text: str) -> str:
    """Return the page for the text of values.yaml. Raises ValueUnexplained."""
    values = list(chart_values(text))
    general = [each for each in values if len(each.path) == 1 and not each.is_section]
    parts = [_PAGE, "\n## General\n", _table(general)]
    for section in (each for each in values if len(each.path) == 1 and each.is_section):
        inside = [each for each in values if each.path[0] == section.path[0] and len(each.path) > 1]
        parts += [f"\n## `{section.path[0]}`\n", f"\n{section.meaning}\n", _table(inside)]
    return "".join(parts)


def chart_values(text: str) -> Iterator[ChartValue]:
    """Yield the values and sections in the order of the file. Raises ValueUnexplained."""
    defaults = yaml.safe_load(text)
    found = list(_commented(text))
    sections = {path[:-1] for path, comment in found if comment}
    for path, comment in found:
        if not comment and path[:-1] in sections:
            raise ValueUnexplained(f"values.yaml: {'.'.join(path)} has no comment above it; write its meaning there")
        if comment:
            default = defaults
            for name in path:
                default = default[name]
            yield ChartValue(path, comment, default, path in sections)


def _commented(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of each name in values.yaml, with the comment right above the name."""
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            comment = []
        elif match["comment"] is not None:
            comment.append(match["comment"])
        else:
            del path[len(match["indent"]) // 2 :]
            path.append(match["name"])
            yield tuple(path), " ".join(comment)
            comment = []


def _table(values: list[ChartValue]) -> str:
    return "\n" + table(
        ("value", "default", "meaning"), ((_name(each), _default(each), each.meaning) for each in values)
    )


def _name(value: ChartValue) -> str:
    name = ".".join(value.path)
    return f"`{name}.…`" if value.is_section else f"`{name}`"


def _default(value: ChartValue) -> str:
    if value.is_section or value.default == "":
        return ""
    return f"`{value.default if isinstance(value.default, str) else json.dumps(value.default)}`"


# -- engines' names in the chart --------------------------------------------------------------------------------------


def _with_engine_names() -> dict[Path, str]:
    """Map each file's path to its text, with the names of today's engines written into it. Raises PlaceGone."""
    settings = engine_settings().model_construct()  # `model_construct` takes the defaults and reads no environment
    alone = [name for name in ENGINES if not settings.section(name).needs_model]
    return {path: _replaced(path, pattern, line(list(ENGINES), alone)) for path, pattern, line in ENGINE_PLACES}


def _replaced(path: Path, pattern: str, line: str) -> str:
    text, count = re.subn(pattern, lambda _: line, path.read_text(encoding="utf-8"))
    if count != 1:
        raise PlaceGone(f"{path.name} has {count} lines like {pattern}; the engines' names belong in exactly one")
    return text


def _either(names: Sequence[str]) -> str:
    """Return the names as a phrase, such as `a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


_Line = Callable[[list[str], list[str]], str]
"""Builds a line of a file from the names of all engines, and from the names of the engines that need no model."""

ENGINE_PLACES: tuple[tuple[Path, str, _Line], ...] = (
    (
        CHART / "values.yaml",
        r"(?m)^  # .*\n(?=  engine: )",
        lambda names, _: f"  # {_either(names)}.\n",
    ),
    (
        CHART / "templates" / "_roles.tpl",
        r"has \.engine \(list [^)]*\)",
        lambda _, alone: f"has .engine (list {' '.join(map(json.dumps, alone))})",
    ),
)
