"""What goes into a handler and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Header = tuple[str, bytes | None]
"""A Kafka record header. It may have no value."""

Headers = Sequence[Header]
"""A record's headers: a name may stand there more than once, the last one counts."""


HEADER_OVERHEAD_BYTES = 10
"""Of each header beside its name and value: two lengths of at most five bytes (KIP-82). Headers may be empty, and a
compressed record may have a million of them."""


def size_of(headers: Headers) -> int:
    """Bytes of the headers as they count for a broker, or somewhat more. Raises UnicodeEncodeError for no name."""
    return sum([len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES for name, value in headers])


@dataclass(slots=True)
class Record:
    """One record that was consumed. An offset is this message's own offset, everywhere."""

    topic: str
    partition: int
    offset: int
    value: bytes
    key: bytes | None = None
    headers: Headers | None = None
    timestamp_ms: int = 0
    """When the record was appended or created, Unix milliseconds."""
    unreadable: str | None = None
    """What the client could not make anything of, `headers` being None then: the reason, as a phrase."""
    shows_health: bool = True
    """Whether its completion shows that the engine, or whatever else runs records, works. A handler that settles the
    record without it sets False."""

    def header(self, name: str) -> str | None:
        """The last header of this name as text; None where it is absent or is not UTF-8."""
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
    """None: the number of a partition that is settled in the same transaction, of this or of another record."""
    may_linger: bool = False
    """Whether it may be settled half a second later, with others of its kind: it says only that something waits on."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record is given up: its handler raised, it killed its worker, or the handler says so itself."""

    code: str
    """The stage's own are `internal_error`, `worker_killed` and `handler_defect`."""
    message: str
    attempts: int


class HandlerCrashed(Exception):  # noqa: N818 - it names what happened, as the engines' EngineDied does
    """Raised by `Handler.handle`: what ran the record died (an engine process). The record may be to blame."""


class Handler(Protocol):
    """The work of one stage. It runs on the event loop and owns no Kafka client."""

    async def handle(self, record: Record) -> Sequence[Output]:
        """Turn a record into outputs. An empty sequence means done without output.

        Raises HandlerCrashed where the record may have killed what ran it; the record is then tried in ever
        smaller company. Any other exception is a defect of the handler: the record goes to `give_up`.
        Cancelled when its partition is taken away before it is done.
        """
        ...

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """The outputs for a record that cannot be handled: its failed result and its dead letter.

        An exception is a defect: the stage's last resort then writes the dead letter.
        """
        ...
