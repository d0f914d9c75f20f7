"""How topics that are there are configured, held against how `postback topics create` would have made them.

A topic that Terraform, another tool or the broker itself has made may look right and lose work: a lane that is
compacted keeps one job of each key, a tier without the broker's time is no queue. What only costs disk is no
difference: a topic may keep its records longer than ours, take larger ones, and wait for more copies.
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
    """A topic whose configuration does not do."""

    topic: str
    name: str
    wanted: str
    found: str


def _number(value: str) -> float:
    """-1 is no bound, for all properties that may be -1."""
    return math.inf if int(value) == -1 else int(value)


def _at_least(found: str, wanted: str) -> bool:
    return _number(found) >= _number(wanted)


def _at_most(found: str, wanted: str) -> bool:
    return _number(found) <= _number(wanted)


def _the_same(found: str, wanted: str) -> bool:
    return sorted(found.replace(" ", "").split(",")) == sorted(wanted.split(","))


_DOES: dict[str, Callable[[str, str], bool]] = {
    "delete.retention.ms": _at_least,
    "max.message.bytes": _at_least,
    "min.insync.replicas": _at_least,
    "retention.bytes": _at_least,
    "retention.ms": _at_least,
    "max.compaction.lag.ms": _at_most,
    "segment.bytes": _at_most,
}
"""Where another value than ours may do as well; every other property has to be the same."""


def shown_configs(admin: Any, topics: Iterable[str]) -> dict[str, dict[str, str]]:
    """The properties that work, by topic; none of a topic whose configuration the broker does not show us."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    answer = admin.describe_configs(resources, config_filter="all")["topic"]
    return {topic: {name: entry["value"] for name, entry in shown.items()} for topic, shown in answer.items()}


def config_differences(admin: Any, wanted: Mapping[str, Mapping[str, str]]) -> tuple[list[ConfigDifference], list[str]]:
    """What does not do, and the topics whose configuration the broker does not show us.

    `wanted` has a topic's properties by its name. It is compared with what works, whether the topic says so itself or
    its broker does.
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
    """Set these properties and leave all others as they are (KIP-339). Raises RequestRefused."""
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
