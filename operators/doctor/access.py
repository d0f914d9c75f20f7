"""Operations that the brokers' ACLs deny to this user.

Brokers list the allowed operations on topics (KIP-430). For groups and transactional ids, a read-only question shows if
they are hidden: Read on a group, and Write on an id, include the right to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from kafka import errors as kafka_errors

from operators.doctor.findings import Finding, fault, warning
from producers.connection import admin_client
from schemas.settings import KafkaSettings

_FORBIDDEN = kafka_errors.TopicAuthorizationFailedError.errno

NEEDED: dict[str, dict[str, frozenset[str]]] = {
    "worker": {
        "model_requests*": frozenset({"READ", "WRITE"}),
        "job_control": frozenset({"READ"}),
        "fleet_workers": frozenset({"READ", "WRITE"}),
        "model_rollouts*": frozenset({"READ", "WRITE"}),
        "model_results": frozenset({"WRITE"}),
        "dead_letters": frozenset({"WRITE"}),
    },
    "deliver": {
        "model_results": frozenset({"READ"}),
        "model_requests*": frozenset({"READ", "WRITE"}),
        "callback_events": frozenset({"READ"}),
        "callback_retries.*": frozenset({"READ", "WRITE"}),
        "callback_endpoints": frozenset({"READ", "WRITE"}),
        "callback_attempts": frozenset({"WRITE"}),
        "dead_letters": frozenset({"WRITE"}),
    },
    "gateway": {
        "model_requests*": frozenset({"READ", "WRITE"}),
        "batch_requests": frozenset({"READ", "WRITE"}),
        "job_control": frozenset({"READ", "WRITE"}),
        "callback_endpoints": frozenset({"READ"}),
        "callback_events": frozenset({"READ", "WRITE"}),
        "callback_retries.*": frozenset({"WRITE"}),
        "callback_attempts": frozenset({"READ"}),
        "model_results": frozenset({"READ", "WRITE"}),
        "fleet_workers": frozenset({"READ"}),
        "model_rollouts": frozenset({"READ"}),
        "dead_letters*": frozenset({"READ", "WRITE"}),
    },
    "exporter": {
        "model_requests*": frozenset({"READ"}),
        "model_results": frozenset({"READ"}),
        "callback_*": frozenset({"READ"}),
        "dead_letters*": frozenset({"READ"}),
        "fleet_workers": frozenset({"READ"}),
    },
}
"""For each role, the operations that it needs on each topic; topics are named without the prefix. A test compares them
with the table in docs/DEPLOY.md."""

GROUPS: dict[str, tuple[str, ...]] = {
    "worker": ("inference", "shadow"),
    "deliver": ("delivery",),
    "gateway": ("expansion", "gateway-relay-doctor"),
}
"""For each role, groups that it joins and that begin its transactional ids, without the prefix."""


def check_groups_access(settings: KafkaSettings, roles: Sequence[str]) -> Iterator[Finding]:
    """Yield the groups and transactional ids that ACLs hide from this user, and that one of the roles needs.

    Raises ProducerError.
    """
    user = settings.client_config().get("sasl.username", "ANONYMOUS")
    for group in dict.fromkeys(group for role in roles for group in GROUPS.get(role, ())):
        name = f"{settings.topic_prefix}{group}"
        identifier = f"{name}.doctor"
        with admin_client(settings) as admin:
            hidden = {
                f"--group {name}": _is_hidden(partial(admin.list_group_offsets, {name: None})),
                f"--transactional-id {name} --resource-pattern-type prefixed": _is_hidden(
                    partial(admin.describe_transactions, [identifier])
                ),
            }
        for (option, is_hidden), kind, operation in zip(
            hidden.items(), ("group", "transactional id"), ("Read", "Write"), strict=True
        ):
            if is_hidden:
                yield fault(
                    f"ACLs deny {operation} on the {kind} {name} to User:{user}",
                    f"run `kafka-acls.sh --bootstrap-server HOST:PORT --add --allow-principal User:{user} "
                    f"--operation {operation} {option}`, and remove rules that deny it",
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


def check_access(settings: KafkaSettings, roles: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield the operations that ACLs deny to this user and that one of the roles needs. Raises ProducerError.

    If `roles` is empty, the function yields only a warning for each topic that is hidden from this user, because no
    check can read such a topic.
    """
    names = [spec.name for spec in settings.topics.specs(1)]
    with admin_client(settings) as admin:
        described = {topic["name"]: topic for topic in admin.describe_topics(names)}
    user = settings.client_config().get("sasl.username", "ANONYMOUS")
    for name in names:
        needed = _needed(name.removeprefix(settings.topic_prefix), roles)
        denied = _denied(described[name], needed)
        if denied and not roles:
            yield warning(
                f"{name} is hidden from User:{user}, so it is not checked", "grant Describe on the topic to this user"
            )
        elif denied and needed:
            operations = " ".join(f"--operation {each.capitalize()}" for each in denied)
            yield fault(
                f"ACLs deny {', '.join(each.capitalize() for each in denied)} on {name} to User:{user}",
                f"run `kafka-acls.sh --bootstrap-server HOST:PORT --add --allow-principal User:{user} {operations} "
                f"--topic {name}`, and remove rules that deny it",
            )


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
