"""Marks in `dead_letters.redriven` of the letters that were put back."""

from __future__ import annotations

from array import array

from pydantic_core import from_json, to_json

from cli.operations.put_back import Returning
from producers.scan import Range, Stored, StoredPlace
from schemas import topics
from schemas.topics import Topics

BROKERS_DIFFER_MS = 60_000
"""Largest difference between the clocks of two brokers. It matters because brokers set the records' timestamps."""

_REMAINDER_BITS = 16
_NO_MORE = (1 << _REMAINDER_BITS) - 1
_LATEST_MS = 1 << 46
"""The latest time that can be stored, in the year 4199. Later timestamps are replaced by it, because time and remainder
share 63 bits."""


class RedriveMarks:
    """The times at which the letters in some ranges were put back. Each offset takes eight bytes.

    `dead_letters` may be deleted and created again, and then old letters' marks have the places of new letters. So a
    mark is used only if it names its letter's time, and if the letter is not younger than the mark. To save memory,
    only a remainder of the named time is stored.
    """

    def __init__(self, ranges: list[Range]) -> None:
        self._at_ms = {each.partition: (each.start, array("q", bytes(8 * (each.stop - each.start)))) for each in ranges}

    def add(self, record: Stored) -> None:
        """Add a record of `dead_letters.redriven`; marks outside the ranges are skipped."""
        place = StoredPlace.parse(record.key.decode("latin-1")) if record.key is not None else None
        letter_ms = _letter_ms(record.value)
        if place is not None and letter_ms is not None and place.partition in self._at_ms:
            start, at_ms = self._at_ms[place.partition]
            if 0 <= place.offset - start < len(at_ms):
                marked_ms = min(max(record.at_ms, 0), _LATEST_MS)
                at_ms[place.offset - start] = marked_ms << _REMAINDER_BITS | letter_ms % _NO_MORE

    def of(self, letter: Stored) -> int | None:
        """Return the time of the letter's redrive, Unix milliseconds; None if it was not put back."""
        start, at_ms = self._at_ms[letter.place.partition]
        marked = at_ms[letter.place.offset - start]
        marked_ms, remainder = marked >> _REMAINDER_BITS, marked & _NO_MORE
        is_its_own = remainder == letter.at_ms % _NO_MORE and marked_ms >= letter.at_ms - BROKERS_DIFFER_MS
        return marked_ms if marked and is_its_own else None


def _letter_ms(value: bytes | None) -> int | None:
    """Return the time of its letter that a mark names; None if it names none, as no redrive writes it."""
    try:
        said = from_json(value or b"")
    except ValueError:
        return None
    letter_ms = said.get("letter_at") if isinstance(said, dict) else None
    return letter_ms if isinstance(letter_ms, int) else None


def mark(
    names: Topics, place: StoredPlace, letter_ms: int, reason: str, headers: list[tuple[str, bytes]], now_ms: int
) -> Returning:
    """Return the mark of a letter that is put back.

    The mark prevents a second redrive; its headers name tenant and job. `letter_ms` is the letter's timestamp, Unix
    milliseconds. With this time, the mark is not mistaken for the mark of a later letter at the same place.
    """
    said = {"id": str(place), "letter_at": letter_ms, "at": now_ms, "reason": reason}
    whose = [(name, value) for name, value in headers if name in topics.IDENTIFYING]
    return Returning(names.redriven, str(place).encode(), to_json(said), whose)
