"""Work that no process reads, and groups that lost their offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from operators.backlog import GroupProgress, standings
from operators.doctor.findings import Finding, fault, in_words, listed, warning
from producers.connection import admin_client, group_offsets
from producers.scan import Range, Scanner, Stored
from schemas import topics
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, Deadline, SystemClock

READ_SECONDS = 10.0
"""Longest search for a callback among a group's waiting records. The limit is needed because a busy fleet keeps
millions of results without a callback."""
_ROLE = {INFERENCE_GROUP: "postback worker", DELIVERY_GROUP: "postback deliver"}
_MEMBERLESS = ("empty", "dead")
_CLOCK = SystemClock()


def _is_for_delivery(record: Stored) -> bool:
    return any(name in (topics.CALLBACK_URL, topics.LANE) for name, _ in record.headers)


_IS_WORK: dict[str, Callable[[Stored], bool]] = {INFERENCE_GROUP: lambda _: True, DELIVERY_GROUP: _is_for_delivery}
"""For each group, a function that returns True for a record that the group's role must process. Results without a
callback need no delivery process; jobs that start later need one."""


def check_groups(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding for each group that has no members although jobs or callbacks wait for it.

    Raises ProducerError.
    """
    found = standings(settings)
    with admin_client(settings) as admin:
        states = {each["group_id"]: str(each.get("group_state", "")).lower() for each in admin.list_groups()}
    for group, role in _ROLE.items():
        if states.get(f"{settings.topic_prefix}{group}", "dead") not in _MEMBERLESS:
            continue
        waiting = [each for each in found if each.group == group and each.base < each.end]
        oldest_ms, is_all_read = _work(settings, waiting, _IS_WORK[group], clock)
        if oldest_ms:
            waited = max(0.0, clock.time() - min(oldest_ms.values()) / 1000)
            yield fault(
                f"the group {settings.topic_prefix}{group} has no members, and records of {listed(sorted(oldest_ms))} "
                f"wait, one of them for {in_words(waited)}",
                f"start `{role}`; `postback backlog` shows what waits",
            )
        elif not is_all_read:
            yield warning(
                f"the group {settings.topic_prefix}{group} has no members; the waiting results that were read in "
                f"{READ_SECONDS:g} s have no callback, and the others were not read",
                f"start `{role}` if jobs have callbacks",
            )


def _work(
    settings: KafkaSettings, waiting: Sequence[GroupProgress], is_work: Callable[[Stored], bool], clock: Clock
) -> tuple[dict[str, int], bool]:
    """Return the time of each topic's first work, Unix milliseconds, and whether the search was finished in time.

    A topic without work is absent, for example if only transaction markers are left.
    """
    oldest_ms: dict[str, int] = {}
    deadline = Deadline.after(clock, READ_SECONDS)
    with Scanner(settings, clock) as scanner:
        # Read short partitions first: retry tiers have only callbacks, but millions of results may have no callback.
        for each in sorted(waiting, key=lambda each: each.end - each.base):
            for record in scanner.read([Range(each.topic, each.partition, each.base, each.end)]):
                if is_work(record):
                    oldest_ms[each.topic] = min(record.at_ms, oldest_ms.get(each.topic, record.at_ms))
                    break
                if deadline.passed:
                    return oldest_ms, False
    return oldest_ms, True


def check_offsets(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding for each group whose offsets Kafka has lost, although its output shows that it had worked.

    Raises ProducerError.
    """
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
