"""The ledger: the done records of one partition, as offsets. The ledger does no I/O.

The words, as the whole stage uses them:

- *taken*: this worker consumed the record and has to handle it.
- *done*: an offset whose outputs are settled, or at which there is no record (a gap).
- *base*: the first offset that is not done; Kafka's committed offset.
- *gap*: an offset that Kafka skipped: a transaction marker, an aborted record, a record that compaction removed.
- *hole*: an offset of the span that is not done.
- *span*: the offsets from base to the highest one seen. The span is bounded so that it always fits into a commit: the
  more holes, the lower the bound (progress.py).
- *suspect*: a record that may have killed a worker. *attempts* counts the workers that the suspect killed while running
  alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from workers.stage.progress import MAX_BITMAP, MAX_HOLES, MAX_SPAN, Progress


class Ledger:
    """One partition's offsets during one assignment.

    A ledger changes in two phases: `after` returns the progress to commit, and `settle` adopts this progress after the
    commit has returned. Between the two, the ledger takes records and gaps, and stores nothing about the commit. So a
    failed commit leaves nothing to undo.
    """

    def __init__(self, progress: Progress) -> None:
        self._base = progress.base
        self._done = progress.done
        self._done_count = progress.done.bit_count()
        self._taken: set[int] = set()
        self.next_offset = progress.base
        """The offset after the highest one seen, and never below base."""
        self.gaps_unsettled = False

    @property
    def base(self) -> int:
        """The first offset that is not done."""
        return self._base

    @property
    def progress(self) -> Progress:
        """The present base and bitmap."""
        return Progress(self._base, self._done)

    @property
    def taken(self) -> frozenset[int]:
        """Offsets that are taken and not yet settled."""
        return frozenset(self._taken)

    @property
    def idle(self) -> bool:
        """True if no record is taken."""
        return not self._taken

    @property
    def next_owed(self) -> int:
        """The next offset to fetch, possibly again: the first offset that is neither done nor taken."""
        given_back = ~self._done & ((1 << self.span) - 1)
        for offset in self._taken:
            given_back &= ~(1 << (offset - self._base))
        return self._base + (given_back & -given_back).bit_length() - 1 if given_back else self.next_offset

    @property
    def span(self) -> int:
        """The number of offsets from base to the highest one seen."""
        return self.next_offset - self._base

    @property
    def holes(self) -> int:
        """The number of offsets in the span that are not done."""
        return self._width - self._done_count

    def undone_before(self, offset: int) -> int:
        """Return how many offsets below `offset` are unseen and not done."""
        unseen = max(0, offset - self.next_offset)
        done = self._done >> (self.next_offset - self._base)
        mask = (1 << min(unseen, done.bit_length())) - 1
        return unseen - (done & mask).bit_count()

    def fits(self, offset: int) -> bool:
        """Return whether the span stays within its bounds if this offset is seen."""
        above = offset - self._base
        if self._base == self.next_offset or above < MAX_BITMAP:
            return True
        return above < MAX_SPAN and (above < self._width or self.holes < MAX_HOLES)

    def is_done(self, offset: int) -> bool:
        """Return whether this offset is done."""
        return offset < self._base or bool(self._done >> (offset - self._base) & 1)

    def is_taken(self, offset: int) -> bool:
        """Return whether this offset was taken and is not yet settled."""
        return offset in self._taken

    def take(self, offset: int) -> bool:
        """Take a delivered record for which `fits` is True, and mark the skipped offsets before the record as done.

        Returns False if the record is done or taken already.
        """
        if offset == self.next_offset:
            self.next_offset = offset + 1
        else:
            self.reach(offset)
            self.next_offset = max(self.next_offset, offset + 1)
        if (self._done and self.is_done(offset)) or offset < self._base or offset in self._taken:
            return False
        self._taken.add(offset)
        return True

    def reach(self, offset: int) -> None:
        """Note that every offset below `offset` was delivered or skipped, as a record or a partition's end shows."""
        if offset <= self.next_offset:
            return
        if self._base == self.next_offset:
            self._move(offset, self._done >> (offset - self._base))  # base may pass a gap of any width
        else:
            skipped = (1 << (offset - self.next_offset)) - 1
            self._move(self._base, self._done | skipped << (self.next_offset - self._base))
        self.next_offset = max(self.next_offset, offset)
        self.gaps_unsettled = True

    def after(self, offsets: Iterable[int]) -> tuple[int, int]:
        """Return the base and bitmap that result if these offsets are done too."""
        above = [offset - self._base for offset in offsets if offset >= self._base]
        width = max([self._done.bit_length(), *above]) + 8
        bits = bytearray(self._done.to_bytes(width // 8 + 1, "little"))  # setting a bit of an int would copy it
        for bit in above:
            bits[bit >> 3] |= 1 << (bit & 7)
        return _advance(self._base, int.from_bytes(bits, "little"))

    def settle(self, offsets: Iterable[int]) -> None:
        """Mark these offsets as done. Call this when the commit that contains them has returned."""
        offsets = list(offsets)
        self._move(*self.after(offsets))
        self._taken.difference_update(offsets)
        self.gaps_unsettled = False

    def adopt(self, progress: Progress) -> set[int]:
        """Adopt a commit of this worker whose answer was lost. Returns the taken offsets that the commit contains."""
        committed = Ledger(progress)
        known = {offset for offset in self._taken if committed.is_done(offset)}
        shift = progress.base - self._base
        ours = self._done >> shift if shift >= 0 else self._done
        theirs = progress.done if shift >= 0 else progress.done >> -shift
        self._move(max(self._base, progress.base), ours | theirs)
        self._taken -= known
        return known

    def drop(self, offset: int) -> None:
        """Give an offset back untried, so that it stays undone for the next owner of the partition."""
        self._taken.discard(offset)

    @property
    def _width(self) -> int:
        """The span's width, or the bitmap's width if the last owner had seen more offsets."""
        return max(self.span, self._done.bit_length())

    def _move(self, base: int, done: int) -> None:
        """Set base and bitmap. Base may pass every offset seen here: an earlier owner may have done more records."""
        self._base, self._done = _advance(base, done)
        self._done_count = self._done.bit_count()  # the count is stored, because `fits` may need it for every record
        self.next_offset = max(self.next_offset, self._base)


def _advance(base: int, done: int) -> tuple[int, int]:
    """Return base and bitmap after moving base past the run of done offsets that starts at base."""
    run = ((done + 1) & ~done).bit_length() - 1
    return base + run, done >> run
