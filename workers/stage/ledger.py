"""The ledger: which records of one partition are done. It does no I/O and speaks in offsets.

The words, as the whole stage uses them:

- *taken*: a record was consumed and is this worker's to handle.
- *done*: nothing is owed for an offset any more: its outputs are settled, or there never was a record (a gap).
- *base*: every offset below it is done. It is what Kafka knows as the committed offset.
- *gap*: an offset that Kafka skipped: a transaction marker, an aborted record, a record that compaction removed.
- *span*: the distance from base to behind the highest taken offset. It is bounded, so the bitmap always fits.
- *suspect*: a record that may have killed a worker; *attempts* counts the workers it killed while it ran alone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_SPAN = 16_384
"""Offsets. 16,384 bits and 32 suspects make 2,684 characters of the 4,096 that a broker allows by default."""

MAX_SUSPECTS = 32
MAX_ATTEMPTS = 127
FORMAT = 1

_OPEN = 0b01
_ALONE = 0b10
_RUNNING = 0b1000_0000


class UndecodableLedger(ValueError):  # noqa: N818 - it says what is wrong with the text
    """The commit's metadata is not a ledger of ours. Nothing above base is known to be done."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """What is known of a record that may kill its worker."""

    attempts: int = 0
    """Workers that it killed while it ran alone."""
    running: bool = False
    """Whether it was being tried when this was committed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A partition's progress as it is committed: base, what is done above it, and what isolation must not forget."""

    base: int
    done: int = 0
    """Bitmap: bit i is offset base + i. Bit 0 is never set, or base would be higher."""
    open: bool = False
    """Whether a worker owns the partition and has not given it back cleanly."""
    alone: bool = False
    """Whether the running suspect has its whole worker to itself."""
    suspects: Mapping[int, Suspect] = field(default_factory=dict)

    @property
    def running(self) -> tuple[int, ...]:
        """Offsets of the suspects that were being tried, ascending."""
        return tuple(sorted(offset for offset, suspect in self.suspects.items() if suspect.running))

    def encode(self) -> str:
        """The progress as commit metadata, format 1: version, flags, suspects, bitmap; base85 of it all."""
        flags = (_OPEN if self.open else 0) | (_ALONE if self.alone else 0)
        out = bytearray((FORMAT, flags, len(self.suspects)))
        for offset, suspect in sorted(self.suspects.items()):
            out += (offset - self.base).to_bytes(2, "little")
            out.append(suspect.attempts | (_RUNNING if suspect.running else 0))
        out += self.done.to_bytes((self.done.bit_length() + 7) // 8, "little")
        return base64.b85encode(bytes(out)).decode("ascii")

    @classmethod
    def decode(cls, base: int, metadata: str) -> Progress:
        """Read commit metadata. Empty metadata is a plain commit. Raises UndecodableLedger."""
        if not metadata:
            return cls(base)
        try:
            raw = base64.b85decode(metadata)
        except (ValueError, binascii.Error) as error:
            raise UndecodableLedger("the commit's metadata is not base85") from error
        if len(raw) < 3 or raw[0] != FORMAT:
            raise UndecodableLedger("the commit's metadata has an unknown version")
        bitmap_at = 3 + 3 * raw[2]
        if raw[2] > MAX_SUSPECTS or len(raw) < bitmap_at or len(raw) - bitmap_at > MAX_SPAN // 8:
            raise UndecodableLedger("the commit's metadata has the wrong length")
        suspects = {}
        for at in range(3, bitmap_at, 3):
            offset = base + int.from_bytes(raw[at : at + 2], "little")
            suspects[offset] = Suspect(raw[at + 2] & ~_RUNNING, bool(raw[at + 2] & _RUNNING))
        done = int.from_bytes(raw[bitmap_at:], "little")
        return cls(base, done, bool(raw[1] & _OPEN), bool(raw[1] & _ALONE), suspects)


class Ledger:
    """One partition's offsets during one assignment.

    It changes in two phases: `after` says what the progress would be, `settle` makes it so once the commit has
    returned. In between nothing is changed, so that a failed commit leaves nothing to undo.
    """

    def __init__(self, progress: Progress) -> None:
        self._base = progress.base
        self._done = progress.done
        self._taken: set[int] = set()
        self.next_offset = progress.base
        """The offset after the highest one seen: the one place where an offset grows by one."""
        self.gaps_unsettled = False

    @property
    def base(self) -> int:
        """Every offset below is done."""
        return self._base

    @property
    def taken(self) -> frozenset[int]:
        """Offsets taken and not yet settled."""
        return frozenset(self._taken)

    @property
    def idle(self) -> bool:
        """Whether nothing is taken."""
        return not self._taken

    @property
    def span(self) -> int:
        """Offsets from base to behind the highest one seen."""
        return self.next_offset - self._base

    def fits(self, offset: int) -> bool:
        """Whether this offset can be seen without the span growing over its bound."""
        return self._base == self.next_offset or offset - self._base < MAX_SPAN

    def is_done(self, offset: int) -> bool:
        """Whether nothing is owed for this offset."""
        return offset < self._base or bool(self._done >> (offset - self._base) & 1)

    def is_taken(self, offset: int) -> bool:
        """Whether this offset was taken and is not yet settled."""
        return offset in self._taken

    def take(self, offset: int) -> bool:
        """Note a delivered record that `fits`; what Kafka skipped before it is done. False: nothing is owed for it."""
        self.reach(offset)
        self.next_offset = max(self.next_offset, offset + 1)
        if self.is_done(offset) or offset in self._taken:
            return False
        self._taken.add(offset)
        return True

    def reach(self, offset: int) -> None:
        """Note that everything below `offset` was delivered or skipped, as a record or an end of partition tells."""
        if offset <= self.next_offset:
            return
        skipped = offset - self.next_offset
        if self._base == self.next_offset:
            self._base = offset  # nothing is owed below: a gap of any length fits
        else:
            self._done |= ((1 << skipped) - 1) << (self.next_offset - self._base)
            self._base, self._done = self._advance(self._done)
        self.next_offset = offset
        self.gaps_unsettled = True

    def after(self, offsets: Iterable[int]) -> tuple[int, int]:
        """Base and bitmap as they would be with these offsets done too."""
        done = self._done
        for offset in offsets:
            if offset >= self._base:
                done |= 1 << (offset - self._base)
        return self._advance(done)

    def settle(self, offsets: Iterable[int]) -> None:
        """The commit has returned: these offsets are done."""
        offsets = list(offsets)
        self._base, self._done = self.after(offsets)
        self._taken.difference_update(offsets)
        self.gaps_unsettled = False

    def adopt(self, progress: Progress) -> set[int]:
        """Take over what was committed in our name unknown to us; returns the taken offsets that it contains."""
        committed = Ledger(progress)
        known = {offset for offset in self._taken if committed.is_done(offset)}
        shift = progress.base - self._base
        ours = self._done >> shift if shift >= 0 else self._done
        theirs = progress.done if shift >= 0 else progress.done >> -shift
        self._base = max(self._base, progress.base)
        self._base, self._done = self._advance(ours | theirs)
        self._taken -= known
        self.next_offset = max(self.next_offset, self._base)
        return known

    def drop(self, offset: int) -> None:
        """Give an offset back untried: it stays undone for whoever owns the partition next."""
        self._taken.discard(offset)

    def _advance(self, done: int) -> tuple[int, int]:
        """Move base over the run of done offsets that starts at it."""
        run = ((done + 1) & ~done).bit_length() - 1
        return self._base + run, done >> run
