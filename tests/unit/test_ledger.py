"""The ledger against a naive set of offsets, and its commit format."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.stage.ledger import MAX_SPAN, MAX_SUSPECTS, Ledger, Progress, Suspect, UndecodableLedger


def ledger_of(picture: str, first: int = 0) -> Ledger:
    """Draw offsets as text: `x` taken and settled, `o` taken and not settled, `.` never delivered."""
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


def test_a_gap_of_any_length_fits_where_nothing_is_owed() -> None:
    ledger = ledger_of("xx")
    assert ledger.fits(10**12)
    ledger.take(10**12)
    assert (ledger.base, ledger.span) == (10**12, 1)


def test_a_record_beyond_the_span_does_not_fit() -> None:
    ledger = ledger_of("o")
    assert ledger.fits(MAX_SPAN - 1)
    assert not ledger.fits(MAX_SPAN)


def test_the_fullest_ledger_fits_into_commit_metadata() -> None:
    suspects = {offset: Suspect(127, running=True) for offset in range(MAX_SUSPECTS)}
    base = 2**50
    fullest = Progress(base, 2**MAX_SPAN - 2, True, True, {base + offset: who for offset, who in suspects.items()})
    text = fullest.encode()
    assert len(text) <= 4096
    assert Progress.decode(2**50, text) == fullest


def test_nothing_changes_before_the_commit_has_returned() -> None:
    ledger = ledger_of("oo")
    assert ledger.after([0, 1]) == (2, 0)
    assert (ledger.base, ledger.taken) == (0, {0, 1})


def test_what_was_committed_unknown_to_us_is_adopted() -> None:
    ledger = ledger_of("oooo")
    known = ledger.adopt(Progress(1, 0b10))  # 0 and 2 are done
    assert known == {0, 2}
    assert ledger.taken == {1, 3}
    ledger.settle([1, 3])
    assert ledger.base == 4


@pytest.mark.parametrize("text", ["not base85 \x00", "äöü", base64.b85encode(b"\x02\x00\x00").decode(), "0", "00000"])
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


@given(
    base=st.integers(0, 2**62),
    done=st.integers(0, 2**MAX_SPAN - 1).map(lambda bits: bits & ~1),
    is_open=st.booleans(),
    alone=st.booleans(),
    above=suspects,
)
@settings(max_examples=60)
def test_every_progress_survives_the_round_trip(
    base: int, done: int, is_open: bool, alone: bool, above: dict[int, Suspect]
) -> None:
    progress = Progress(base, done, is_open, alone, {base + offset: suspect for offset, suspect in above.items()})
    assert Progress.decode(base, progress.encode()) == progress


class LedgerAgainstNaiveSets(RuleBasedStateMachine):
    """A log with gaps is delivered, settled in any order, committed, lost and reopened; the model is two sets."""

    @initialize(first=st.integers(0, 50))
    def begin(self, first: int) -> None:
        self.first = first
        self.end = first
        self.delivered: set[int] = set()
        self.settled: set[int] = set()
        self.committed = Progress(first)
        self.ledger = Ledger(self.committed)

    @property
    def model_done(self) -> set[int]:
        """Settled, or skipped by the log."""
        return {o for o in range(self.first, self.end) if o not in self.delivered or o in self.settled}

    @rule(skip=st.integers(0, 5))
    def deliver(self, skip: int) -> None:
        offset = self.end + skip
        assert self.ledger.fits(offset)
        assert self.ledger.take(offset)
        self.delivered.add(offset)
        self.end = offset + 1

    @rule(skip=st.integers(1, 5))
    def reach_the_end_of_the_partition(self, skip: int) -> None:
        self.end += skip
        self.ledger.reach(self.end)

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.delivered)))
        taken_before = self.ledger.is_taken(offset)
        assert self.ledger.take(offset) == (offset not in self.settled and not taken_before)

    @precondition(lambda self: self.delivered - self.settled)
    @rule(data=st.data())
    def settle_some(self, data: st.DataObject) -> None:
        open_ones = sorted(o for o in self.delivered - self.settled if self.ledger.is_taken(o))
        if not open_ones:
            return
        chosen = data.draw(st.lists(st.sampled_from(open_ones), unique=True))
        self.committed = Progress(*self.ledger.after(chosen))
        self.ledger.settle(chosen)
        self.settled.update(chosen)

    @rule()
    def crash_and_reopen(self) -> None:
        """A new owner knows what was committed and nothing else; the log is delivered again from base."""
        read = Progress.decode(self.committed.base, self.committed.encode())
        self.ledger = Ledger(read)
        for offset in sorted(o for o in self.delivered if o >= read.base):
            assert self.ledger.take(offset) == (offset not in self.settled)
        self.ledger.reach(self.end)

    @rule()
    def an_unknown_commit_is_adopted(self) -> None:
        """A commit was applied and its answer lost: what it contains must be dropped, and only that."""
        chosen = sorted(self.ledger.taken)[::2]
        applied = Progress(*self.ledger.after(chosen))
        assert self.ledger.adopt(Progress.decode(applied.base, applied.encode())) == set(chosen)
        self.settled.update(chosen)
        self.committed = applied

    @invariant()
    def agrees_with_the_model(self) -> None:
        done = self.model_done
        assert {o for o in range(self.first, self.end) if self.ledger.is_done(o)} == done
        assert self.ledger.base == next((o for o in range(self.first, self.end) if o not in done), self.end)
        assert self.ledger.taken == self.delivered - self.settled
        assert self.ledger.next_offset == self.end


TestLedgerAgainstNaiveSets = LedgerAgainstNaiveSets.TestCase
TestLedgerAgainstNaiveSets.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
