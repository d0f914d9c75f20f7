"""Compares the ledger with a naive set of offsets, and tests the format of its commits."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.drawn import drawn
from workers.stage.ledger import Ledger
from workers.stage.progress import (
    MAX_BITMAP,
    MAX_HOLES,
    MAX_SPAN,
    MAX_SUSPECTS,
    Progress,
    Suspect,
    UndecodableLedger,
    topic_mark,
)


def ledger_of(picture: str, first: int = 0) -> Ledger:
    """Draw offsets as text: `x` is taken and settled, `o` is taken and not settled, `.` was never delivered."""
    ledger = Ledger(Progress(first))
    for offset, sign in enumerate(picture, first):
        if sign in "xo":
            ledger.take(offset)
    ledger.settle([offset for offset, sign in enumerate(picture, first) if sign == "x"])
    return ledger


@pytest.mark.parametrize(
    ("picture", "base", "done"),
    [
        ("", 0, set()),
        ("o", 0, set()),
        ("x", 1, set()),
        ("xxo", 2, set()),
        ("oxx", 0, {1, 2}),
        ("xoxox", 1, {2, 4}),
        ("..o", 2, set()),
        ("o..x", 0, {1, 2, 3}),
        ("x.x", 3, set()),
        ("o.o", 0, {1}),
    ],
)
def test_base_and_bitmap_follow_the_picture(picture: str, base: int, done: set[int]) -> None:
    for first in (0, 7, 2**40):
        ledger = ledger_of(picture, first)
        committed = Progress(*ledger.after([]))
        read = Progress.decode(committed.base, committed.encode())
        assert read.base == base + first
        assert {offset for offset in range(first, first + 10) if Ledger(read).is_done(offset)} == {
            *range(first, first + base),
            *(offset + first for offset in done),
        }


def test_returned_records_are_the_next_to_fetch_before_unseen_ones() -> None:
    ledger = ledger_of("xoxo.ox", 7)
    assert ledger.next_owed == ledger.next_offset == 14
    ledger.drop(12)
    assert (ledger.next_owed, ledger.next_offset) == (12, 14)
    ledger.drop(8)
    assert ledger.next_owed == 8
    ledger.take(8)
    assert ledger.next_owed == 12


def test_a_gap_of_any_length_fits_if_no_offset_before_it_is_undone() -> None:
    ledger = ledger_of("xx")
    assert ledger.fits(10**12)
    ledger.take(10**12)
    assert (ledger.base, ledger.span) == (10**12, 1)


def test_a_record_beyond_the_span_does_not_fit() -> None:
    ledger = ledger_of("o")
    assert ledger.fits(MAX_SPAN - 1)
    assert not ledger.fits(MAX_SPAN)


def test_a_wide_span_may_have_few_holes_and_a_narrow_span_any_number() -> None:
    ledger = Ledger(Progress(0))
    for offset in range(MAX_BITMAP):
        assert ledger.fits(offset)
        ledger.take(offset)
    assert not ledger.fits(MAX_BITMAP)
    ledger.settle(range(1, MAX_BITMAP - MAX_HOLES + 1))
    assert ledger.holes == MAX_HOLES
    assert not ledger.fits(MAX_BITMAP)
    ledger.settle([MAX_BITMAP - 1])
    assert ledger.fits(MAX_BITMAP)
    assert ledger.fits(MAX_SPAN - 1)


def test_a_new_owner_may_take_each_hole_of_the_previous_owner() -> None:
    holes = range(0, MAX_SPAN, MAX_SPAN // MAX_HOLES + 1)
    ledger = Ledger(Progress(0, sum(1 << offset for offset in range(MAX_SPAN)) ^ sum(1 << hole for hole in holes)))
    for offset in range(MAX_SPAN):
        assert ledger.fits(offset)
        assert ledger.take(offset) == (offset in holes)
    assert not ledger.fits(MAX_SPAN)


def test_a_new_owner_takes_nothing_above_the_previous_owners_span_while_this_span_is_full_of_holes() -> None:
    """Done offsets that the new owner has not seen make no room: its next commit could not name one more hole."""
    end = MAX_HOLES + MAX_BITMAP
    ledger = Ledger(Progress(0, (2**MAX_BITMAP - 1) << MAX_HOLES))
    for offset in range(MAX_HOLES):
        assert ledger.take(offset)
    assert (ledger.holes, ledger.fits(end - 1), ledger.fits(end)) == (MAX_HOLES, True, False)
    ledger.settle([MAX_HOLES - 1])
    assert ledger.fits(end)


@pytest.mark.parametrize(
    ("done", "suspects_from"),
    [
        (2**MAX_BITMAP - 2, 0),
        (2**MAX_SPAN - 2, MAX_SPAN - MAX_SUSPECTS),
        (sum((2**37 - 2) << (37 * hole) for hole in range(MAX_HOLES)), 7),
        (sum((2**33 - 2) << (33 * hole) for hole in range(MAX_HOLES)) | (2**15_000 - 1) << 33 * MAX_HOLES, 7),
        ((2**100_000 - 1) << MAX_HOLES, 7),
    ],
    ids=["narrow", "wide", "holes apart", "holes at the code's worst", "holes together"],
)
def test_the_fullest_ledgers_fit_into_commit_metadata(done: int, suspects_from: int) -> None:
    base = 2**50
    suspects = {base + suspects_from + number: Suspect(127, running=True) for number in range(MAX_SUSPECTS)}
    assert done.bit_length() <= MAX_SPAN
    fullest = Progress(base, done, True, True, suspects, topic_mark("any"))
    text = fullest.encode()
    assert len(text) <= 4096
    assert Progress.decode(base, text) == fullest


def test_records_that_retention_removes_do_not_move_done_ones() -> None:
    ledger = Ledger(Progress(0, 0b1010))
    ledger.reach(2)  # retention has removed the record at 0, and the record at 1 is done
    assert (ledger.base, ledger.next_offset) == (2, 2)
    assert [ledger.take(offset) for offset in (2, 3, 4)] == [True, False, True]
    far = Ledger(Progress(0, 0b1010))
    far.reach(10**12)
    assert [far.take(10**12 + offset) for offset in range(4)] == [True] * 4


def test_a_settled_record_moves_base_over_unseen_offsets_that_an_earlier_owner_has_done() -> None:
    ledger = Ledger(Progress(0, 0b0111_1110))
    ledger.take(0)
    ledger.settle([0])
    assert (ledger.base, ledger.span) == (7, 0)
    assert [ledger.take(offset) for offset in (3, 9)] == [False, True]  # Kafka skips 7 and 8, so these are a gap
    assert (ledger.base, ledger.taken) == (9, frozenset({9}))


def test_nothing_changes_before_the_commit_has_returned() -> None:
    ledger = ledger_of("oo")
    assert ledger.after([0, 1]) == (2, 0)
    assert (ledger.base, ledger.taken) == (0, frozenset({0, 1}))


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_a_progress_includes_another_if_it_has_all_offsets_that_are_done_there(one: set[int], other: set[int]) -> None:
    def progress(done: set[int]) -> Progress:
        return Progress(*Ledger(Progress(3)).after(done))

    assert progress(one).includes(progress(other)) == (other - {0, 1, 2} <= one)


def test_a_commit_unknown_to_us_is_adopted() -> None:
    ledger = ledger_of("oooo")
    known = ledger.adopt(Progress(1, 0b10))  # 0 and 2 are done in this commit
    assert known == {0, 2}
    assert ledger.taken == {1, 3}
    ledger.settle([1, 3])
    assert ledger.base == 4


MARK = topic_mark("any")

UNDECODABLE = [
    base64.b85encode(data).decode()
    for data in (
        b"\x00\x00\x00",  # the format's number has never been used
        b"\x05\x00\x00" + MARK,  # the format's number is that of a later version
        b"\x03\x00\x00\x01\x02\x03",  # half a mark
        b"\x04\x00\x01" + MARK,  # a mark in place of a suspect
        b"\x03\x00\x21" + MARK,  # more suspects than allowed
        b"\x03\x00\x01" + MARK + b"\x00",  # fewer suspects than stated
        b"\x03\x00\x00" + MARK + bytes(MAX_BITMAP // 8 + 1),
        b"\x04\x00\x00" + MARK + b"\x08",  # half a width
        b"\x04\x00\x00" + MARK + b"\x02\x00\x00",  # done offsets directly at base
        b"\x04\x00\x00" + MARK + b"\x02\x00\x00\x07",  # the same, with a hole after the done offsets
        b"\x04\x00\x00" + MARK + b"\x01\x00\x00\x03",  # a hole with nothing done after it
        b"\x04\x00\x00" + MARK + b"\x08\x00\x00\x03\x80",  # half a number
        b"\x04\x00\x00" + MARK + b"\x01\x00\x02\x03",  # more offsets than allowed
    )
]


@pytest.mark.parametrize("text", ["not base85 \x00", "äöü", "0", "00000", *UNDECODABLE])
def test_metadata_that_is_not_ours_is_undecodable(text: str) -> None:
    with pytest.raises(UndecodableLedger):
        Progress.decode(5, text)


@given(st.text(max_size=60))
def test_any_text_decodes_or_says_that_it_does_not(text: str) -> None:
    try:
        progress = Progress.decode(9, text)
    except UndecodableLedger:
        return
    assert progress.base == 9


suspects = st.dictionaries(
    st.integers(0, MAX_SPAN - 1), st.builds(Suspect, st.integers(0, 127), st.booleans()), max_size=32
)


def runs_of(lengths: list[int]) -> int:
    """A bitmap of alternating runs of undone and done offsets, undone first, cut to the maximum width."""
    done = at = 0
    for number, length in enumerate(lengths):
        done |= ((1 << length) - 1) << at if number % 2 else 0
        at += length
    return done & ((1 << MAX_SPAN) - 1)


bitmaps = st.one_of(
    st.integers(0, 2**MAX_BITMAP - 1).map(lambda bits: bits & ~1),
    st.lists(st.one_of(st.integers(1, 300), st.integers(1, 40_000)), max_size=60).map(runs_of),
)


@given(
    base=st.integers(0, 2**62),
    done=bitmaps,
    is_open=st.booleans(),
    alone=st.booleans(),
    above=suspects,
    topic=st.none() | st.uuids().map(str).map(topic_mark),
)
@settings(max_examples=drawn(60))
def test_every_progress_survives_the_round_trip(
    base: int, done: int, is_open: bool, alone: bool, above: dict[int, Suspect], topic: bytes | None
) -> None:
    suspects = {base + offset: suspect for offset, suspect in above.items()}
    progress = Progress(base, done, is_open, alone, suspects, topic)
    assert Progress.decode(base, progress.encode()) == progress
    assert progress.given_back().topic == topic


@pytest.mark.parametrize(
    ("data", "done", "is_open", "suspects"),
    [
        (b"\x03\x01\x00" + bytes(4) + b"\x06", 0b110, True, {}),
        (b"\x03\x02\x01" + bytes(4) + b"\x02\x00\x83\x02", 0b10, False, {7: Suspect(3, running=True)}),
        (b"\x04\x00\x00" + bytes(4) + b"\x02\x00\x00\x03", 0b10, False, {}),
    ],
    ids=["bitmap", "bitmap and suspect", "holes"],
)
def test_progress_without_a_topic_s_mark_counts_for_the_present_topic(
    data: bytes, done: int, is_open: bool, suspects: dict[int, Suspect]
) -> None:
    read = Progress.decode(5, base64.b85encode(data).decode())
    assert (read.base, read.done, read.open, dict(read.suspects), read.topic) == (5, done, is_open, suspects, None)
    assert not read.is_of_another_topic(topic_mark("any"))


class LedgerAgainstNaiveSets(RuleBasedStateMachine):
    """A log with gaps is delivered, settled in any order, committed, lost and reopened; the naive model uses sets.

    `seen` is the offset up to which the present owner has got records. A new owner knows the committed progress, and
    nothing of the log.
    """

    @initialize(first=st.integers(0, 50))
    def begin(self, first: int) -> None:
        self.first = self.seen = self.end = first
        self.log: set[int] = set()
        self.settled: set[int] = set()
        self.committed = Progress(first)
        self.ledger = Ledger(self.committed)

    @property
    def model_done(self) -> set[int]:
        """Offsets that are settled, or that the log skips."""
        return {o for o in range(self.first, self.end) if o not in self.log or o in self.settled}

    @property
    def owed(self) -> set[int]:
        """Unsettled offsets that the present owner has got."""
        return {o for o in self.log - self.settled if o < self.seen}

    @rule(skip=st.integers(0, 5))
    def append(self, skip: int) -> None:
        self.log.add(self.end + skip)
        self.end += skip + 1

    @rule(count=st.integers(1, 8))
    def deliver(self, count: int) -> None:
        for offset in sorted(o for o in self.log if o >= self.seen)[:count]:
            assert self.ledger.fits(offset)
            assert self.ledger.take(offset) == (offset not in self.settled)
            self.seen = offset + 1

    @rule()
    def reach_the_end_of_the_partition(self) -> None:
        if all(offset < self.seen for offset in self.log):
            self.seen = self.end
            self.ledger.reach(self.end)

    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        delivered = sorted(o for o in self.log if o < self.seen)
        if delivered:
            assert not self.ledger.take(data.draw(st.sampled_from(delivered)))

    @rule(data=st.data())
    def settle_some(self, data: st.DataObject) -> None:
        if self.owed:
            chosen = data.draw(st.lists(st.sampled_from(sorted(self.owed)), unique=True))
            self.committed = Progress(*self.ledger.after(chosen))
            self.ledger.settle(chosen)
            self.settled.update(chosen)

    @rule()
    def crash_and_reopen(self) -> None:
        """A new owner knows only the committed progress; the log is delivered again from base."""
        read = Progress.decode(self.committed.base, self.committed.encode())
        self.ledger = Ledger(read)
        self.seen = read.base

    @rule()
    def retention_removes_what_is_not_seen(self) -> None:
        """A new owner opens a log whose first records are deleted."""
        if self.seen == self.committed.base and self.ledger.idle:
            lost = sorted(o for o in self.log if o >= self.seen)[:3]
            self.log.difference_update(lost)

    @rule()
    def an_unknown_commit_is_adopted(self) -> None:
        """A commit was applied and its answer lost: exactly its offsets must be dropped."""
        chosen = sorted(self.ledger.taken)[::2]
        applied = Progress(*self.ledger.after(chosen))
        assert self.ledger.adopt(Progress.decode(applied.base, applied.encode())) == set(chosen)
        self.settled.update(chosen)
        self.committed = applied

    @invariant()
    def agrees_with_the_model(self) -> None:
        done, known = self.model_done, {o for o in range(self.first, self.end) if self.ledger.is_done(o)}
        assert known <= done
        assert {o for o in done if o < self.seen} <= known
        assert self.ledger.base == next((o for o in range(self.first, self.end) if o not in known), self.end)
        assert self.ledger.taken == self.owed
        assert self.ledger.next_offset == max(self.seen, self.ledger.base)


TestLedgerAgainstNaiveSets = LedgerAgainstNaiveSets.TestCase
TestLedgerAgainstNaiveSets.settings = settings(max_examples=drawn(150), stateful_step_count=30)
