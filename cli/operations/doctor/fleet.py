"""The running fleet: work that no process reads, lost offsets, clocks, workers, dead letters, disabled endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from kafka import KafkaProducer

from cli.operations.backlog import GroupProgress, standings
from cli.operations.dead_letters import DeadLetters, LetterFilter
from cli.operations.doctor.findings import Finding, fault, in_words, listed, warning
from cli.operations.endpoints import disabled_endpoints
from producers.connection import (
    abandon,
    admin_client,
    connect,
    group_offsets,
    kafka_errors_translated,
    needed,
    partition_counts,
)
from producers.scan import Range, Scanner, Stored
from producers.workers import live_workers
from schemas import topics
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings
from schemas.worker import ANNOUNCE_SECONDS, LIVE_SECONDS, InvalidAnnouncement, read_announcement
from telemetry.clock import Clock, Deadline, SystemClock
from telemetry.logs import origin_of

READ_SECONDS = 10.0
"""Longest search for a callback among a group's waiting records. The limit is needed because a busy fleet keeps
millions of results without a callback."""
SHORT = 100
"""Largest number of offsets of a range that is read together with others."""
_ROLE = {INFERENCE_GROUP: "postback worker", DELIVERY_GROUP: "postback deliver"}
_MEMBERLESS = ("empty", "dead")
WARN_SECONDS = 2.0
"""A difference from this size on gives a warning. Deadlines and times to live are whole seconds, so a smaller
difference has no effect."""
FAULT_SECONDS = 30.0
_SENT_SECONDS = 10.0
_KEY = b" doctor"
"""The key of the record that asks for the broker's time. The key has a space, so it is no worker's name."""
_FIX = "let NTP set the clock: `timedatectl set-ntp true`, then look at `timedatectl`"
_DAY_MS = 86_400_000
_ONE_PROCESS_MS = 0.8 * ANNOUNCE_SECONDS * 1000
"""The shortest time between two announcements of one process; an announcement may wait for a broker."""
_CLOCK = SystemClock()


def _is_for_delivery(record: Stored) -> bool:
    return any(name in (topics.CALLBACK_URL, topics.LANE) for name, _ in record.headers)


_IS_WORK: dict[str, Callable[[Stored], bool]] = {INFERENCE_GROUP: lambda _: True, DELIVERY_GROUP: _is_for_delivery}
"""For each group, a function that returns True for a record that the group's role must process. Results without a
callback need no delivery process; jobs that start later need one."""


def check_groups(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding for each group that has no members although work waits, or whose offsets Kafka has lost.

    Raises ProducerError.
    """
    found = standings(settings)
    with admin_client(settings) as admin:
        states = {each["group_id"]: str(each.get("group_state", "")).lower() for each in admin.list_groups()}
        lost = {group for group in _ROLE if not group_offsets(admin, f"{settings.topic_prefix}{group}")}
    for group in _ROLE:
        waiting = [each for each in found if each.group == group and each.base < each.end]
        if states.get(f"{settings.topic_prefix}{group}", "dead") in _MEMBERLESS:
            yield from _without_members(settings, group, waiting, clock)
        if group in lost:
            yield from _without_offsets(settings, group, sorted({each.topic for each in waiting}), clock)


def _without_members(
    settings: KafkaSettings, group: str, waiting: Sequence[GroupProgress], clock: Clock
) -> Iterator[Finding]:
    oldest_ms, is_all_read = _work(settings, waiting, _IS_WORK[group], clock)
    if oldest_ms:
        waited = max(0.0, clock.time() - min(oldest_ms.values()) / 1000)
        yield fault(
            f"the group {settings.topic_prefix}{group} has no members, and records of {listed(sorted(oldest_ms))} "
            f"wait, one of them for {in_words(waited)}",
            f"start `{_ROLE[group]}`; `postback topics backlog` shows what waits",
        )
    elif not is_all_read:
        yield warning(
            f"the group {settings.topic_prefix}{group} has no members; the waiting results that were read in "
            f"{READ_SECONDS:g} s have no callback, and the others were not read",
            f"start `{_ROLE[group]}` if jobs have callbacks",
        )


def _without_offsets(settings: KafkaSettings, group: str, waiting: Sequence[str], clock: Clock) -> Iterator[Finding]:
    """Yield the fault of a group without offsets, if its output shows that it had worked."""
    output = settings.topics.results if group == INFERENCE_GROUP else settings.topics.attempts
    with Scanner(settings, clock) as scanner:
        if waiting and scanner.ranges(output):
            yield fault(
                f"Kafka has no offsets of the group {settings.topic_prefix}{group}, though {output} shows its work: "
                f"`{_ROLE[group]}` would handle every record of {listed(waiting)} again",
                "set offsets.retention.minutes=10080 on the brokers, and set the group's offsets with "
                "`kafka-consumer-groups.sh --reset-offsets` before the role starts",
            )


def _work(
    settings: KafkaSettings, waiting: Sequence[GroupProgress], is_work: Callable[[Stored], bool], clock: Clock
) -> tuple[dict[str, int], bool]:
    """Return the time of each topic's first work, Unix milliseconds, and whether the search was finished in time.

    A topic without work is absent, for example if only transaction markers are left.
    """
    oldest_ms: dict[str, int] = {}

    def is_found(record: Stored) -> bool:
        if found := is_work(record):
            oldest_ms[record.topic] = min(record.at_ms, oldest_ms.get(record.topic, record.at_ms))
        return found

    deadline = Deadline.after(clock, READ_SECONDS)
    ranges = sorted((Range(each.topic, each.partition, each.base, each.end) for each in waiting), key=_size)
    short = [each for each in ranges if _size(each) <= SHORT]
    with Scanner(settings, clock) as scanner:
        # Short ranges are read in one pass: a pass takes as long as a poll, and retry tiers have hundreds of partitions
        # with a marker alone. Tiers have only callbacks, but millions of results may have none, so these come last.
        for record in scanner.read(short):
            is_found(record)
        for each in ranges[len(short) :]:
            if not deadline.remaining:
                return oldest_ms, False
            for record in scanner.read([each]):
                if is_found(record):
                    break
                if deadline.passed:
                    return oldest_ms, False
    return oldest_ms, True


def _size(of: Range) -> int:
    return of.stop - of.start


# -- clocks ----------------------------------------------------------------------------------------------------------


def check_clock(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding if this machine's clock differs from the broker's clock.

    Raises ProducerError. To learn the broker's time, the check writes a record to `fleet_workers`. The record is a
    tombstone, which every reader skips and compaction removes.
    """
    topic = settings.topics.workers
    partition_counts(settings, [topic])
    with needed("a record there shows the broker's time (Write)"):
        producer: Any = connect(KafkaProducer, settings, acks="all", allow_auto_create_topics=False)
        try:
            with kafka_errors_translated(settings):
                before = clock.time()
                stamped = producer.send(topic, value=None, key=_KEY, partition=0).get(timeout=_SENT_SECONDS)
                after = clock.time()
        finally:
            abandon(producer)
    broker = stamped.timestamp / 1000
    # The broker set the record's timestamp between `before` and `after`.
    ahead = before - broker if before > broker else min(0.0, after - broker)
    yield from skew_findings("this machine's clock", ahead)


def skew_findings(whose: str, ahead: float) -> Iterator[Finding]:
    """Yield the finding of a clock that is `ahead` seconds ahead of the broker's; a negative `ahead` means behind."""
    if abs(ahead) <= WARN_SECONDS:
        return
    side = "ahead of" if ahead > 0 else "behind"
    weigh = fault if abs(ahead) > FAULT_SECONDS else warning
    yield weigh(f"{whose} is {abs(ahead):.0f} s {side} the broker's: deadlines and signatures are judged wrongly", _FIX)


# -- workers, dead letters, endpoints --------------------------------------------------------------------------------


def check_workers(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield the findings of the workers' announcements: versions, names of two processes, clocks.

    Raises ProducerError.
    """
    since_ms = int((clock.time() - LIVE_SECONDS) * 1000)
    with Scanner(settings, clock) as scanner:
        announced = list(scanner.read(scanner.ranges(settings.topics.workers, since_ms)))
    by_version: dict[str, list[str]] = {}
    for worker in live_workers(announced, since_ms):
        by_version.setdefault(worker.version or "an unknown version", []).append(worker.replica)
    if len(by_version) > 1:
        said = "; ".join(f"{version} on {listed(replicas)}" for version, replicas in sorted(by_version.items()))
        yield warning(f"workers run different versions: {said}", "finish the upgrade, or roll it back")
    yield from _shared_names(announced)
    yield from _worker_clocks(announced)


def _shared_names(announced: Sequence[Stored]) -> Iterator[Finding]:
    """Yield a finding for each worker's name that announces itself more often than one process does.

    Two processes with one name have one transactional id, so each fences the other.
    """
    times: dict[bytes, list[int]] = {}
    for record in announced:
        if record.value is None:
            times.pop(record.key or b"", None)  # the process has ended; its successor may begin at once
        else:
            times.setdefault(record.key or b"", []).append(record.at_ms)
    for key, at_ms in sorted(times.items()):
        if sum(later - earlier < _ONE_PROCESS_MS for earlier, later in pairwise(at_ms)) > 1:
            yield fault(
                f"two workers have the name {key.decode('utf-8', 'replace')}, or one ends again and again: "
                f"{len(at_ms)} announcements within {in_words(LIVE_SECONDS)}",
                "give each process a POSTBACK_REPLICA of its own; for a single one, read the end of its log",
            )


def _worker_clocks(announced: Sequence[Stored]) -> Iterator[Finding]:
    """Yield a finding for each worker whose clock, which its announcements state, differs from the brokers'."""
    ahead: dict[str, float] = {}
    for record in announced:
        try:
            said = read_announcement(record.key, record.value or b"")
        except InvalidAnnouncement:
            continue
        ahead[said.replica] = (said.at - record.at_ms) / 1000
    for replica, seconds in sorted(ahead.items()):
        # An announcement may wait 30 s for a broker, and then the worker's clock seems slow. So only a fast clock is
        # certain.
        if seconds > 0 or seconds < -2 * FAULT_SECONDS:
            yield from skew_findings(f"the clock of worker {replica}", seconds)


def check_dead_letters(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding of the last day's dead letters that were not put back, by reason. Raises ProducerError."""
    since_ms = int(clock.time() * 1000) - _DAY_MS
    with Scanner(settings, clock) as scanner:
        letters = DeadLetters(settings, scanner, clock).letters(LetterFilter(since_ms=since_ms))
        reasons = Counter(letter.reason for letter in letters)
    if reasons:
        yield warning(
            "jobs or callbacks were given up within the last day: "
            + listed([f"{count} {reason}" for reason, count in reasons.most_common()]),
            "run `postback dead-letters list --since -24h`, mend the cause, then `postback dead-letters redrive`",
        )


def check_endpoints(settings: KafkaSettings) -> Iterator[Finding]:
    """Yield a finding if endpoints are disabled.

    The finding names origins only, because paths may carry tokens. Raises ProducerError.
    """
    origins = sorted({origin_of(url) for _, url in disabled_endpoints(settings)})
    if origins:
        yield warning(
            f"endpoints are disabled, and their callbacks are given up: {listed(origins)}",
            "run `postback endpoints list`, and `postback endpoints enable URL --tenant T` once it works again",
        )
