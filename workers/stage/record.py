"""The input and output of a handler, and the handler's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Header = tuple[str, bytes | None]
"""A Kafka record header. It may have no value."""

Headers = Sequence[Header]
"""A record's headers: a name may occur more than once, and its last value counts."""

HEADER_OVERHEAD_BYTES = 10
"""A header's bytes beside its name and value: two lengths of at most five bytes (KIP-82). Headers may be empty, and a
compressed record may have a million of them."""


def size_of(headers: Headers) -> int:
    """Return the bytes of the headers as a broker counts them, or slightly more. Raises UnicodeEncodeError."""
    return sum([len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES for name, value in headers])


@dataclass(slots=True)
class Record:
    """One consumed record. An offset is this record's own offset, everywhere."""

    topic: str
    partition: int
    offset: int
    value: bytes
    key: bytes | None = None
    headers: Headers | None = None
    timestamp_ms: int = 0
    """When the record was appended or created, Unix milliseconds."""
    unreadable: str | None = None
    """Why the client could not read the headers, as a phrase; `headers` is None then."""
    shows_health: bool = True
    """Whether its completion shows that the engine works. A handler that settles the record without it sets False."""

    def header(self, name: str) -> str | None:
        """Return the last header of this name as text; None where it is absent or is not UTF-8."""
        for key, value in reversed(self.headers or ()):
            if key == name and value is not None:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    return None
        return None


@dataclass(slots=True)
class Output:
    """One record to be produced in the same transaction as the progress of the record that caused it."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers | None = None
    partition: int | None = None
    """None for the number of any source partition in the same transaction."""
    may_linger: bool = False
    """Whether it may be settled half a second later, with others of its kind: it only passes a record on to wait."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record is given up: its handler raised or refused it, or the record killed its worker."""

    code: str
    """The stage itself uses `internal_error`, `worker_killed` and `handler_defect`."""
    message: str
    attempts: int


class HandlerCrashed(Exception):  # noqa: N818 - it names what happened, as the engines' EngineDied does
    """Raised by `Handler.handle`: the engine process that ran the record died. The record may be to blame."""


class Handler(Protocol):
    """The work of one stage. It runs on the event loop and owns no Kafka client."""

    async def handle(self, record: Record) -> Sequence[Output]:
        """Turn a record into outputs. An empty sequence means done without output.

        Raises HandlerCrashed where the record may have killed its engine; the record is then tried in ever smaller
        groups. Any other exception is a defect of the handler: the record goes to `give_up`. Cancelled when its
        partition is revoked before it is done.
        """
        ...

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return the outputs for a record that cannot be handled: its failed result and its dead letter.

        An exception is a defect: the stage's last resort then writes the dead letter.
        """
        ...
