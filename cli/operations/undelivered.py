"""Finds the results that are neither delivered nor still being tried. A replay puts them back after an outage.

The fleet's topics are the only source, and are read in this order:

    delivery's progress          records of `model_results` and of the tiers at or after a base are still being tried
    delivery's transactions      the transaction that advances a base also writes the outcomes of the records below it;
                                 the reading waits until the outcomes below all bases are visible
    `dead_letters`, `dead_letters.redriven`   given-up callbacks are not tried any more; an open letter is marked when
                                 its result is put back, so that no redrive repeats the callback
    the tiers                    waiting callbacks
    `callback_attempts`          callbacks that were answered with 2xx

After this reading, only another replay or redrive could start an event again; redrives are fenced.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from pydantic_core import from_json

from cli.operations.dead_letters import DeadLetters, LetterFilter
from cli.operations.put_back import Returning
from cli.operations.redrive_marks import BROKERS_DIFFER_MS, mark
from producers.connection import committed_offsets
from producers.scan import Range, Scanner, Stored, StoredPlace
from schemas import topics
from schemas.groups import DELIVERY_GROUP
from schemas.settings import KafkaSettings
from telemetry.clock import Clock

Event = int
"""A hash of tenant and `webhook-id`, in 128 bits. The hash is used because a number takes less memory than two
texts."""


class CallbackStanding(StrEnum):
    """The state of a result's callback."""

    DELIVERED = "delivered"
    WAITING = "waiting"
    """An attempt is under way, or will follow without an operator."""
    UNKNOWN = "unknown"
    """The result is older than the kept attempts, so it may have been delivered."""
    UNDELIVERED = "undelivered"
    """As far as the topics show, the callback was given up."""


class _Open(NamedTuple):
    """A dead letter that was not put back."""

    digest: bytes
    """Hash of the letter's value."""
    place: StoredPlace
    at_ms: int
    reason: str


class Undelivered:
    """The states of the given results at the time of construction. Raises ProducerError.

    Memory: some 130 bytes for each result, and some 600 for each of its dead letters.
    """

    def __init__(self, settings: KafkaSettings, scanner: Scanner, clock: Clock, results: Iterable[Stored]) -> None:
        self._names = settings.topics
        self._clock = clock
        self._scanner = scanner
        self._bases = committed_offsets(settings, f"{settings.topic_prefix}{DELIVERY_GROUP}")
        self._delivered_ms: dict[Event, int] = {}
        """For each event, the time of the last answer with 2xx in Unix milliseconds; 0 if there is none."""
        since_ms: int | None = None
        for result in results:
            self._delivered_ms[event_of(result)] = 0
            since_ms = min(result.at_ms, since_ms or result.at_ms)
        self._waiting: set[Event] = set()
        self._open: dict[Event, list[_Open]] = defaultdict(list)
        self._kept_from_ms = 0
        if since_ms is not None:
            self._read(settings, clock, since_ms)

    def standing(self, result: Stored) -> CallbackStanding:
        """Return the state of one of the given results."""
        event = event_of(result)
        # A redriven job has a second result with the same event; an attempt for the first result must not make the
        # second one delivered.
        if self._delivered_ms[event] >= result.at_ms - BROKERS_DIFFER_MS:
            return CallbackStanding.DELIVERED
        if event in self._waiting or self._is_ahead(result):
            return CallbackStanding.WAITING
        return CallbackStanding.UNKNOWN if result.at_ms < self._kept_from_ms else CallbackStanding.UNDELIVERED

    def marks(self, result: Stored) -> list[Returning]:
        """Return the marks to write with a result, so that no redrive puts its dead letters back again."""
        letters = self._open.get(event_of(result))
        if not letters:
            return []
        digest, now_ms = _digest(result), int(self._clock.time() * 1000)
        return [
            mark(self._names, letter.place, letter.at_ms, letter.reason, result.headers, now_ms)
            for letter in letters
            if letter.digest == digest
        ]

    def _is_ahead(self, record: Stored) -> bool:
        """True if delivery has not passed the record yet."""
        return record.place.offset >= self._bases.get((record.topic, record.place.partition), 0)

    def _read(self, settings: KafkaSettings, clock: Clock, since_ms: int) -> None:
        names, scanner = self._names, self._scanner
        tiers = [*names.tiers.values(), *names.former_tiers(scanner.topics())]
        scanner.wait_until_settled([names.dead_letters, names.redriven, names.attempts, *tiers])
        given_up = set(self._read_letters(DeadLetters(settings, scanner, clock)))
        for record in scanner.read(list(self._ahead(tiers))):
            if (record.topic, record.place) not in given_up and event_of(record) in self._delivered_ms:
                self._waiting.add(event_of(record))
        for record in scanner.read(scanner.ranges(names.attempts, since_ms - BROKERS_DIFFER_MS)):
            self._read_attempt(record)
        self._kept_from_ms = scanner.kept_from_ms(names.attempts)

    def _read_letters(self, letters: DeadLetters) -> Iterator[tuple[str, StoredPlace]]:
        """Record the open letters of the given results; yield the source of each callback that was given up."""
        for letter in letters.letters(LetterFilter(redriven_too=True)):
            event = event_of(letter.record)
            if letter.kind != "callback" or event not in self._delivered_ms:
                continue
            if letter.redriven_ms is None:
                self._open[event].append(
                    _Open(_digest(letter.record), letter.place, letter.record.at_ms, sys.intern(letter.reason))
                )
            if letter.source is not None:
                yield letter.source

    def _ahead(self, tiers: Iterable[str]) -> Iterator[Range]:
        """Yield the ranges of the tiers' records at or after delivery's base."""
        for tier in tiers:
            for each in self._scanner.ranges(tier):
                start = max(each.start, self._bases.get((tier, each.partition), 0))
                if start < each.stop:
                    yield each._replace(start=start)

    def _read_attempt(self, record: Stored) -> None:
        event = event_of(record)
        if event not in self._delivered_ms:
            return
        try:
            error = from_json(record.value or b"")["error"]
        except (ValueError, KeyError, TypeError):
            return  # the fleet did not write this record
        if error is None:
            self._delivered_ms[event] = max(self._delivered_ms[event], record.at_ms)


def event_of(record: Stored) -> Event:
    """Return the hash of a record's tenant and `webhook-id`."""
    named = f"{len(record.tenant)} {record.tenant}{record.header(topics.WEBHOOK_ID) or ''}"
    return int.from_bytes(hashlib.blake2b(named.encode(), digest_size=16).digest())


def _digest(record: Stored) -> bytes:
    return hashlib.blake2b(record.value or b"", digest_size=16).digest()
