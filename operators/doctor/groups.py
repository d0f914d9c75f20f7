"""Work that no process reads, and groups that lost their offsets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from operators.backlog import GroupProgress, standings
from operators.doctor.findings import Finding, fault, in_words, listed
from producers.connection import admin_client, group_offsets
from producers.scan import Range, Scanner
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, SystemClock

_ROLE = {INFERENCE_GROUP: "postback worker", DELIVERY_GROUP: "postback deliver"}
_MEMBERLESS = ("empty", "dead")
_CLOCK = SystemClock()


def check_groups(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield the groups without members while records wait for them. Raises ProducerError."""
    found = standings(settings)
    with admin_client(settings) as admin:
        states = {each["group_id"]: str(each.get("group_state", "")).lower() for each in admin.list_groups()}
    for group, role in _ROLE.items():
        if states.get(f"{settings.topic_prefix}{group}", "dead") not in _MEMBERLESS:
            continue
        waiting = [each for each in found if each.group == group and each.base < each.end]
        oldest = _oldest_ms(settings, waiting, clock)
        if oldest is not None:
            topics = sorted({each.topic for each in waiting})
            waited = max(0.0, clock.time() - oldest / 1000)
            yield fault(
                f"the group {settings.topic_prefix}{group} has no members, and records of {listed(topics)} have waited "
                f"for up to {in_words(waited)}",
                f"start `{role}`; `postback backlog` shows what waits",
            )


def _oldest_ms(settings: KafkaSettings, waiting: Sequence[GroupProgress], clock: Clock) -> int | None:
    """Return the time of the oldest record that waits; None if only transaction markers are left."""
    oldest: int | None = None
    with Scanner(settings, clock) as scanner:
        for each in waiting:
            first = next(scanner.read([Range(each.topic, each.partition, each.base, each.end)]), None)
            if first is not None and (oldest is None or first.at_ms < oldest):
                oldest = first.at_ms
    return oldest


def check_offsets(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield the groups whose offsets Kafka forgot although their work left traces. Raises ProducerError."""
    names = settings.topics
    with admin_client(settings) as admin:
        committed = {group: group_offsets(admin, f"{settings.topic_prefix}{group}") for group in _ROLE}
    if all(committed.values()):
        return
    traces = {INFERENCE_GROUP: names.results, DELIVERY_GROUP: names.attempts}
    with Scanner(settings, clock) as scanner:
        for group, topic in traces.items():
            if committed[group] or not scanner.ranges(topic):
                continue
            again = {each.topic for each in standings(settings) if each.group == group and each.base < each.end}
            if again:
                yield fault(
                    f"Kafka has no offsets of the group {settings.topic_prefix}{group}, though {topic} shows its work: "
                    f"`{_ROLE[group]}` would handle every record of {listed(sorted(again))} again",
                    "set offsets.retention.minutes=10080 on the brokers, and set the group's offsets with "
                    "`kafka-consumer-groups.sh --reset-offsets` before the role starts",
                )
