"""The state of the running fleet: versions of workers, dead letters, disabled endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from operators.dead_letters import DeadLetters, LetterFilter
from operators.doctor.findings import Finding, fault, in_words, listed, warning
from operators.endpoints import disabled_endpoints
from producers.scan import Scanner
from producers.workers import live_workers
from schemas.settings import KafkaSettings
from schemas.worker import ANNOUNCE_SECONDS, LIVE_SECONDS
from telemetry.clock import Clock, SystemClock
from telemetry.logs import origin_of

_DAY_MS = 86_400_000
_ONE_PROCESS_MS = 0.8 * ANNOUNCE_SECONDS * 1000
"""The shortest time between two announcements of one process; an announcement may wait for a broker."""
_CLOCK = SystemClock()


def check_versions(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding if live workers run different versions of Postback. Raises ProducerError."""
    since_ms = int((clock.time() - LIVE_SECONDS) * 1000)
    with Scanner(settings, clock) as scanner:
        workers = live_workers(scanner.read(scanner.ranges(settings.topics.workers, since_ms)), since_ms)
    by_version: dict[str, list[str]] = {}
    for worker in workers:
        by_version.setdefault(worker.version or "an unknown version", []).append(worker.replica)
    if len(by_version) > 1:
        said = "; ".join(f"{version} on {listed(replicas)}" for version, replicas in sorted(by_version.items()))
        yield warning(f"workers run different versions: {said}", "finish the upgrade, or roll it back")


def check_names(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding for each worker's name that announces itself more often than one process does.

    Two processes with one name have one transactional id, so each fences the other. Raises ProducerError.
    """
    since_ms = int((clock.time() - LIVE_SECONDS) * 1000)
    times: dict[bytes, list[int]] = {}
    with Scanner(settings, clock) as scanner:
        for record in scanner.read(scanner.ranges(settings.topics.workers, since_ms)):
            if record.value is None:
                times.pop(record.key or b"", None)  # the process has ended; its successor may begin at once
            else:
                times.setdefault(record.key or b"", []).append(record.at_ms)
    for key, at_ms in sorted(times.items()):
        gaps = [later - earlier for earlier, later in pairwise(at_ms)]
        if sum(gap < _ONE_PROCESS_MS for gap in gaps) > 1:
            replica = key.decode("utf-8", "replace")
            yield fault(
                f"two workers have the name {replica}, or one ends again and again: {len(at_ms)} announcements within "
                f"{in_words(LIVE_SECONDS)}",
                "give each process a POSTBACK_REPLICA of its own; for a single one, read the end of its log",
            )


def check_dead_letters(settings: KafkaSettings, clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield a finding for each reason of the last day's dead letters that were not put back. Raises ProducerError."""
    since_ms = int(clock.time() * 1000) - _DAY_MS
    with Scanner(settings, clock) as scanner:
        counted = DeadLetters(settings, scanner, clock).tally(LetterFilter(since_ms=since_ms))
    reasons: dict[str, int] = {}
    for (_, reason), count in counted.open.items():
        reasons[reason] = reasons.get(reason, 0) + count
    for reason, count in counted.held.items():
        reasons[reason] = reasons.get(reason, 0) + count
    if reasons:
        most = sorted(reasons, key=lambda reason: -reasons[reason])
        said = listed([f"{reasons[reason]} {reason}" for reason in most])
        yield warning(
            f"jobs or callbacks were given up within the last day: {said}",
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
