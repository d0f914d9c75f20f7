"""The fleet's topics: missing ones, partitions, copies, leaders, configuration, and operations that ACLs deny.

Brokers list the allowed operations on topics (KIP-430). For groups and transactional ids, a read-only question shows if
they are hidden: Read on a group, and Write on an id, include the right to ask.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from kafka import errors as kafka_errors

from cli.operations.doctor.findings import Finding, fault, listed, warning
from cli.operations.topics import durability, wanted_replicas
from producers.connection import admin_client
from producers.topic_configs import config_differences, shown_configs
from schemas.settings import KafkaSettings
from schemas.topics import TopicSpec

Kind = TypeVar("Kind", bound=Hashable)

_FORBIDDEN = kafka_errors.TopicAuthorizationFailedError.errno
_UNKNOWN = kafka_errors.UnknownTopicOrPartitionError.errno
_CREATE = "run `postback topics create`"
_IN_SYNC = "min.insync.replicas"

_READ: frozenset[str] = frozenset({"READ"})
_WRITE: frozenset[str] = frozenset({"WRITE"})
_BOTH = _READ | _WRITE

NEEDED: dict[str, dict[str, frozenset[str]]] = {
    "worker": {
        **dict.fromkeys(("model_requests*", "fleet_workers", "model_rollouts*"), _BOTH),
        **dict.fromkeys(("job_control",), _READ),
        **dict.fromkeys(("model_results", "dead_letters"), _WRITE),
    },
    "deliver": {
        **dict.fromkeys(("callback_retries.*", "callback_endpoints", "model_requests*"), _BOTH),
        **dict.fromkeys(("model_results", "callback_events"), _READ),
        **dict.fromkeys(("callback_attempts", "dead_letters"), _WRITE),
    },
    "gateway": {
        **dict.fromkeys(("model_requests*", "batch_requests", "job_control", "callback_events"), _BOTH),
        **dict.fromkeys(("model_results", "dead_letters*", "callback_retries.*"), _BOTH),
        **dict.fromkeys(("callback_endpoints", "callback_attempts", "fleet_workers", "model_rollouts"), _READ),
    },
    "exporter": dict.fromkeys(
        ("model_requests*", "model_results", "callback_*", "dead_letters*", "fleet_workers"), _READ
    ),
}
"""For each role, the operations that it needs on each topic; topics are named without the prefix. A test compares them
with the table in docs/DEPLOY.md."""

GROUPS: dict[str, tuple[str, ...]] = {
    "worker": ("inference", "shadow"),
    "deliver": ("delivery",),
    "gateway": ("expansion", "gateway-relay-doctor"),
}
"""For each role, groups that it joins and that begin its transactional ids, without the prefix."""


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
        partitions = {spec.name: described[spec.name]["partitions"] for spec in there}
        copies = {name: min(len(each["replica_nodes"]) for each in parts) for name, parts in partitions.items()}
        yield from _partitions(there, partitions)
        yield from _copies(partitions, copies, wanted_replicas(admin, settings), shown_configs(admin, list(partitions)))
        yield from _configuration(admin, {spec.name: spec.config | durability(copies[spec.name]) for spec in there})


def _missing(settings: KafkaSettings, missing: list[str], existing: list[str], *, complete: bool) -> Finding:
    """Return the fault of missing topics. If all are missing, the topic prefix in the settings may be wrong."""
    own = settings.topics.requests().removeprefix(settings.topic_prefix)
    prefixes = sorted(name.removesuffix(own) for name in existing if name.endswith(own)) if complete else []
    fix = _CREATE
    if prefixes:
        fix = f"set POSTBACK_KAFKA__TOPIC_PREFIX={prefixes[0]}, whose topics exist, or {_CREATE}"
    return fault(f"topics are missing: {listed(missing)}", fix)


def _alike(found: Iterable[tuple[Kind, str]]) -> dict[Kind, list[str]]:
    """Return the names of topics that have the same fault, by the fault."""
    names: defaultdict[Kind, list[str]] = defaultdict(list)
    for kind, name in found:
        names[kind].append(name)
    return names


def _partitions(specs: Sequence[TopicSpec], partitions: dict[str, list[Any]]) -> Iterator[Finding]:
    counted = (((len(partitions[spec.name]), spec.partitions), spec.name) for spec in specs)
    for (found, wanted), names in _alike(each for each in counted if each[0][0] < each[0][1]).items():
        yield fault(
            f"topics with {found} instead of {wanted} partitions: {listed(names)}",
            f"run `postback topics create --raise-partitions`, or set POSTBACK_KAFKA__PARTITIONS={found}",
        )


def _copies(
    partitions: dict[str, list[Any]], copies: dict[str, int], wanted: int, configs: dict[str, dict[str, str]]
) -> Iterator[Finding]:
    """Yield the faults of topics whose records have too few copies, or that accept no writes now."""
    needed = {name: int(configs.get(name, {}).get(_IN_SYNC, 1)) for name in partitions}
    for name, least in needed.items():
        if copies[name] >= least:
            yield from _unwritable(name, partitions[name], least)
            continue
        yield fault(
            f"{name} has {copies[name]} copies, and no write succeeds with fewer than {least} ({_IN_SYNC})",
            f"run `kafka-configs.sh --bootstrap-server HOST:PORT --alter --entity-type topics --entity-name "
            f"{name} --add-config {_IN_SYNC}={max(1, copies[name] - 1)}`",
        )
    thin = ((count, name) for name, count in copies.items() if needed[name] <= count < wanted)
    for replicas, names in _alike(thin).items():
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


def _configuration(admin: Any, wanted: dict[str, dict[str, str]]) -> Iterator[Finding]:
    differences, hidden = config_differences(admin, wanted)
    if hidden:
        yield fault(
            f"ACLs deny DescribeConfigs to this user, so the configuration is not checked: {listed(hidden)}",
            "grant DescribeConfigs on these topics to the user that runs this command",
        )
    alike = _alike(((each.name, each.found, each.wanted), each.topic) for each in differences)
    for (name, found, needed), topics in alike.items():
        yield fault(
            f"topics with {name}={found} instead of {needed}: {listed(topics)}",
            "run `postback topics create --fix-config`",
        )


# -- what ACLs deny --------------------------------------------------------------------------------------------------


def check_access(settings: KafkaSettings, roles: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield the operations that ACLs deny to this user and that one of the roles needs. Raises ProducerError.

    If `roles` is empty, the function yields only a warning for each topic that is hidden from this user, because no
    check can read such a topic.
    """
    user = f"User:{settings.client_config().get('sasl.username', 'ANONYMOUS')}"
    names = [spec.name for spec in settings.topics.specs(1)]
    with admin_client(settings) as admin:
        described = {topic["name"]: topic for topic in admin.describe_topics(names)}
        for name in names:
            needed = _needed(name.removeprefix(settings.topic_prefix), roles)
            denied = _denied(described[name], needed)
            if denied and not roles:
                yield warning(f"{name} is hidden from {user}, so it is not checked", f"grant Describe on it to {user}")
            elif denied and needed:
                yield _access_fault(user, denied, name, f"--topic {name}")
        for group in dict.fromkeys(group for role in roles for group in GROUPS.get(role, ())):
            name = f"{settings.topic_prefix}{group}"
            if _is_hidden(partial(admin.list_group_offsets, {name: None})):
                yield _access_fault(user, ["READ"], f"the group {name}", f"--group {name}")
            if _is_hidden(partial(admin.describe_transactions, [f"{name}.doctor"])):
                option = f"--transactional-id {name} --resource-pattern-type prefixed"
                yield _access_fault(user, ["WRITE"], f"the transactional id {name}", option)


def _access_fault(user: str, denied: Sequence[str], what: str, option: str) -> Finding:
    operations = [each.capitalize() for each in denied]
    return fault(
        f"ACLs deny {', '.join(operations)} on {what} to {user}",
        f"run `kafka-acls.sh --bootstrap-server HOST:PORT --add --allow-principal {user} "
        f"{' '.join(f'--operation {each}' for each in operations)} {option}`, and remove rules that deny it",
    )


def _is_hidden(ask: Callable[[], object]) -> bool:
    """Return True if the broker refuses an answer about a group or an id. An unknown one is not hidden."""
    try:
        ask()
    except (kafka_errors.GroupAuthorizationFailedError, kafka_errors.TransactionalIdAuthorizationFailedError):
        return True
    except kafka_errors.BrokerResponseError:
        return False
    return False


def _needed(topic: str, roles: Sequence[str]) -> frozenset[str]:
    return frozenset(
        operation
        for role in roles
        for pattern, operations in NEEDED[role].items()
        if topic == pattern or (pattern.endswith("*") and topic.startswith(pattern[:-1]))
        for operation in operations
    )


def _denied(described: Any, needed: frozenset[str]) -> list[str]:
    """Return the needed operations that are denied.

    On a hidden topic all are denied, and Describe is denied even if none is needed.
    """
    if described["error_code"] == _FORBIDDEN:
        return sorted(needed) or ["DESCRIBE"]
    allowed = described.get("authorized_operations")
    return [] if allowed is None else sorted(needed.difference(allowed))
