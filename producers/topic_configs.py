"""Compares the configuration of existing topics with that of `postback topics create`.

A topic that Terraform, another tool or the broker created may look right and still lose jobs or callbacks.
For example, a compacted lane keeps one job of each key, and a tier without the broker's timestamps has no order.
A value that only costs disk space is accepted: longer retention, larger records and more copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType

from producers.errors import RequestRefused


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """A topic whose configuration would lose jobs or callbacks."""

    topic: str
    name: str
    wanted: str
    found: str


def _number(value: str) -> float:
    """Convert a property's value to a number. -1 becomes infinity, because in every property it means no bound."""
    return math.inf if int(value) == -1 else int(value)


def _at_least(found: str, wanted: str) -> bool:
    return _number(found) >= _number(wanted)


def _at_most(found: str, wanted: str) -> bool:
    return _number(found) <= _number(wanted)


def _the_same(found: str, wanted: str) -> bool:
    return sorted(found.replace(" ", "").split(",")) == sorted(wanted.split(","))


def _compresses(found: str, _: str) -> bool:
    return found in ("gzip", "snappy", "lz4", "zstd")


_DOES: dict[str, Callable[[str, str], bool]] = {
    "compression.type": _compresses,
    "delete.retention.ms": _at_least,
    "max.message.bytes": _at_least,
    "min.insync.replicas": _at_least,
    "retention.bytes": _at_least,
    "retention.ms": _at_least,
    "max.compaction.lag.ms": _at_most,
    "segment.bytes": _at_most,
}
"""Maps each property that may differ from the wanted value to the check of its value. All other properties must be
equal."""


def shown_configs(
    admin: Any, names: Iterable[str], kind: ConfigResourceType = ConfigResourceType.TOPIC
) -> dict[str, dict[str, str]]:
    """Return the effective properties of each topic or broker: none if the broker hides its configuration."""
    answer = admin.describe_configs([ConfigResource(kind, name) for name in names], config_filter="all")
    shown = answer.get(kind.name.lower(), {})
    return {name: {one: entry["value"] for one, entry in config.items()} for name, config in shown.items()}


def config_differences(admin: Any, wanted: Mapping[str, Mapping[str, str]]) -> tuple[list[ConfigDifference], list[str]]:
    """Return the differences, and the topics whose configuration the broker does not show.

    `wanted` has each topic's properties by name. The comparison uses effective values, including the broker's
    defaults.
    """
    if not wanted:
        return [], []
    found = shown_configs(admin, wanted)
    differences = [
        ConfigDifference(topic, name, value, found[topic][name])
        for topic, config in wanted.items()
        for name, value in config.items()
        if name in found[topic] and not _DOES.get(name, _the_same)(found[topic][name], value)
    ]
    return differences, [topic for topic in wanted if not found[topic]]


def fix_configs(admin: Any, differences: Sequence[ConfigDifference]) -> None:
    """Set the differing properties, and leave all others unchanged (KIP-339). Raises RequestRefused."""
    changes: dict[str, dict[str, str]] = {}
    for difference in differences:
        changes.setdefault(difference.topic, {})[difference.name] = difference.wanted
    if not changes:
        return
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic, dict(config)) for topic, config in changes.items()]
    answer = admin.alter_configs(resources, raise_on_unknown=False, incremental=True)["topic"]
    for topic, said in answer.items():
        if said != "OK":
            raise RequestRefused(f"the configuration of {topic} could not be set: {said}")
