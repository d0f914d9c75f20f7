"""The fleet's topics: missing ones, partitions, copies, leaders, and configuration that loses work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import errors as kafka_errors

from operators.doctor.findings import Finding, fault, listed
from operators.topics import durability, wanted_replicas
from producers.connection import admin_client
from producers.topic_configs import config_differences, shown_configs
from schemas.settings import KafkaSettings
from schemas.topics import TopicSpec

_UNKNOWN = kafka_errors.UnknownTopicOrPartitionError.errno
_CREATE = "run `postback topics create`"
_IN_SYNC = "min.insync.replicas"


def check_topics(settings: KafkaSettings, engines: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield the faults of the fleet's topics.

    `engines` are the engines that have lanes of their own. Raises ProducerError.
    """
    specs = settings.topics.specs(settings.partitions, tuple(engines))
    with admin_client(settings) as admin:
        described = {topic["name"]: topic for topic in admin.describe_topics([spec.name for spec in specs])}
        missing = [spec.name for spec in specs if described[spec.name]["error_code"] == _UNKNOWN]
        if missing:
            yield _missing(settings, missing, admin.list_topics(), complete=len(missing) == len(specs))
        there = [spec for spec in specs if described[spec.name]["error_code"] == 0]
        if not there:
            return
        yield from _partitions(there, described)
        yield from _copies(there, described, wanted_replicas(admin, settings), shown_configs(admin, _names(there)))
        yield from _configuration(admin, there, described)


def _names(specs: Sequence[TopicSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _missing(settings: KafkaSettings, missing: list[str], existing: list[str], *, complete: bool) -> Finding:
    """Return the fault of missing topics. If all are missing, the topic prefix in the settings may be wrong."""
    own = settings.topics.requests().removeprefix(settings.topic_prefix)
    prefixes = sorted(name.removesuffix(own) for name in existing if name.endswith(own)) if complete else []
    fix = _CREATE
    if prefixes:
        fix = f"set POSTBACK_KAFKA__TOPIC_PREFIX={prefixes[0]}, whose topics exist, or {_CREATE}"
    return fault(f"topics are missing: {listed(missing)}", fix)


def _partitions(specs: Sequence[TopicSpec], described: dict[str, Any]) -> Iterator[Finding]:
    fewer: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for spec in specs:
        found = len(described[spec.name]["partitions"])
        if found < spec.partitions:
            fewer[found, spec.partitions].append(spec.name)
    for (found, wanted), names in fewer.items():
        yield fault(
            f"topics with {found} instead of {wanted} partitions: {listed(names)}",
            f"run `postback topics create --raise-partitions`, or set POSTBACK_KAFKA__PARTITIONS={found}",
        )


def _copies(
    specs: Sequence[TopicSpec], described: dict[str, Any], wanted: int, configs: dict[str, dict[str, str]]
) -> Iterator[Finding]:
    """Yield the faults of topics whose records have too few copies, or that accept no writes now."""
    thin: defaultdict[int, list[str]] = defaultdict(list)
    for spec in specs:
        partitions = described[spec.name]["partitions"]
        replicas = min(len(each["replica_nodes"]) for each in partitions)
        needed = int(configs.get(spec.name, {}).get(_IN_SYNC, 1))
        if replicas < needed:
            yield fault(
                f"{spec.name} has {replicas} copies, and no write succeeds with fewer than {needed} ({_IN_SYNC})",
                f"run `kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics --entity-name "
                f"{spec.name} --add-config {_IN_SYNC}={max(1, replicas - 1)}`",
            )
            continue
        if replicas < wanted:
            thin[replicas].append(spec.name)
        yield from _unwritable(spec.name, partitions, needed)
    for replicas, names in thin.items():
        yield fault(
            f"topics with {replicas} instead of {wanted} copies: {listed(names)}",
            "add copies with `kafka-reassign-partitions.sh`, or set "
            f"POSTBACK_KAFKA__REPLICATION_FACTOR={replicas} if that is intended",
        )


def _unwritable(topic: str, partitions: list[Any], needed: int) -> Iterator[Finding]:
    broken = [each for each in partitions if each["leader_id"] < 0 or len(each["isr_nodes"]) < needed]
    if broken:
        away = sorted({node for each in broken for node in each["replica_nodes"] if node not in each["isr_nodes"]})
        yield fault(
            f"{len(broken)} partitions of {topic} have no leader or too few copies in sync, and take no writes",
            f"start the brokers {', '.join(map(str, away))}" if away else "look at the brokers' logs",
        )


def _configuration(admin: Any, specs: Sequence[TopicSpec], described: dict[str, Any]) -> Iterator[Finding]:
    wanted = {
        spec.name: spec.config
        | durability(min(len(each["replica_nodes"]) for each in described[spec.name]["partitions"]))
        for spec in specs
    }
    differences, hidden = config_differences(admin, wanted)
    if hidden:
        yield fault(
            f"ACLs deny DescribeConfigs to this user, so the configuration is not checked: {listed(hidden)}",
            "grant DescribeConfigs on these topics to the user that runs this command",
        )
    alike: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for each in differences:
        alike[each.name, each.found, each.wanted].append(each.topic)
    for (name, found, needed), topics in alike.items():
        yield fault(
            f"topics with {name}={found} instead of {needed}: {listed(topics)}",
            "run `postback topics create --fix-config`",
        )
