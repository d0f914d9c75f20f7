"""The input and output of a handler, and the handler's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Header = tuple[str, bytes | None]
"""A Kafka record header: a name and an optional value."""

Headers = Sequence[Header]
"""A record's headers. A name may occur more than once; the last header with a name is the valid one."""

Party = bytes | None
"""The party of a record; None in a stage without a `Sharing`."""

HEADER_OVERHEAD_BYTES = 10
"""A header's bytes beside its name and value: two lengths of at most five bytes each (KIP-82).

These bytes matter even if headers are empty, because a compressed record may have a million headers.
"""


def size_of(headers: Headers) -> int:
    """Return the bytes of the headers as a broker counts them, or slightly more. Raises UnicodeEncodeError."""
    return sum([len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES for name, value in headers])


@dataclass(slots=True)
class Record:
    """One consumed record. `offset` is the record's own offset, not the next one."""

    topic: str
    partition: int
    offset: int
    value: bytes
    key: bytes | None = None
    headers: Headers | None = None
    timestamp_ms: int = 0
    """The time at which the record was appended or created, in Unix milliseconds."""
    unreadable: str | None = None
    """The reason why the client could not read the headers, as a phrase; `headers` is None then."""
    shows_health: bool = True
    """True if the record's completion shows that the engine works. A handler that did not use the engine sets False."""
    party: Party = None
    """The tenant or destination, as `Sharing.assess` sets it."""
    cost: float = 1.0
    """The estimated cost, above 0."""
    spent: float | None = None
    """The real cost, set by the handler; None if the estimate is right."""
    urgency: int = 0
    """The record's rank within its party; the lowest is served first."""
    outside: Party = None
    """The party of a record whose handler may have to wait for a server outside the fleet, else None.

    A party that is set wrongly does little harm. See `window.RemoteShare`."""

    def header(self, name: str) -> str | None:
        """Return the last value of the header `name` as text; None if it is absent or not UTF-8."""
        for key, value in reversed(self.headers or ()):
            if key == name and value is not None:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    return None
        return None


@dataclass(slots=True)
class Output:
    """A record to produce, in the same transaction as the progress of the record that caused the output."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers | None = None
    partition: int | None = None
    """If None, the settler chooses the number of one of the transaction's source partitions."""
    may_linger: bool = False
    """True if the output may be settled half a second later, with other lingering outputs.

    Delivery sets it for records that have to wait in a tier anyway.
    """


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason for giving a record up: its handler raised or refused the record, or the record killed its worker."""

    code: str
    """The stage itself uses `internal_error`, `worker_killed` and `handler_defect`."""
    message: str
    attempts: int


class HandlerCrashed(Exception):  # noqa: N818 - it names what happened, as the engines' EngineDied does
    """The engine process that ran the record died, and the record may be to blame.

    `Handler.handle` raises this error.
    """


class Handler(Protocol):
    """The work of one stage. A handler runs on the event loop and owns no Kafka client."""

    async def handle(self, record: Record) -> Sequence[Output]:
        """Turn a record into outputs. An empty sequence means that the record is done without output.

        Raises HandlerCrashed if the record may have killed its engine; the stage then tries the record again in ever
        smaller groups. Any other exception is a defect of the handler: the stage then calls `give_up`. The stage
        cancels this call if the partition is revoked and the call does not end in time.
        """
        ...

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return the outputs for a record that cannot be handled, such as a failed result and a dead letter.

        An exception is a defect: the stage's last resort then writes the dead letter.
        """
        ...
