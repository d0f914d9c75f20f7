"""A dead letter: a record that was given up, kept for an operator, with the reason in its headers."""

from __future__ import annotations

from schemas import topics as names
from workers.stage.record import Header, Headers, Output, Record, size_of

MAX_LETTER_BYTES = 960_000
"""A topic accepts records of up to 1 MiB.

A record that arrived compressed may be larger, and its dead letter is abridged.
"""

_LONGEST_NAME = 256


def dead_letter(topic: str, record: Record, reason: str, detail: str, attempts: int, carried: Headers) -> Output:
    """Return the record with the `carried` headers and the reason: `reason` is a stable code, `detail` is for people.

    A record that does not fit loses its value, its key, and all headers but those that identify tenant and job. The
    source headers name the topic, partition and offset at which the whole record stays until retention removes it.
    """
    why: list[Header] = [
        (names.REASON, reason.encode()),
        (names.REASON_DETAIL, detail.encode()),
        (names.ATTEMPTS, str(attempts).encode()),
        (names.SOURCE_TOPIC, record.topic.encode()),
        (names.SOURCE_PARTITION, str(record.partition).encode()),
        (names.SOURCE_OFFSET, str(record.offset).encode()),
    ]
    kept = list(carried)
    if len(record.value) + len(record.key or b"") + size_of(kept) > MAX_LETTER_BYTES:
        short = [(name, value) for name, value in kept if len(value or b"") <= _LONGEST_NAME]
        whose = {name: value for name, value in short if name in names.IDENTIFYING}
        return Output(topic, None, None, [*whose.items(), *why, (names.ABRIDGED, b"1")])
    return Output(topic, record.value, record.key, kept + why)
