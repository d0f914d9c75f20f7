"""A partition's progress: done offsets and suspects, written into the metadata of the committed offset.

A broker accepts 4,096 characters of metadata by default, so the formats are bounded. Each format begins with version,
flags and the number of suspects; the topic's mark and the suspects follow, and the done offsets come last. The bytes
are written in base85. The versions differ in the done offsets:

    3  a bitmap of up to MAX_BITMAP offsets above base, with any holes
    4  up to MAX_HOLES holes in MAX_SPAN offsets: the number of done offsets before each hole, in a Rice code

The mark is four bytes of a hash of the topic's UUID, or zeros if the stage does not know the UUID. When a topic is
deleted and created again under the same name, a group may keep its offsets. The old topic's offsets mean nothing in the
new topic.

A hole is an offset that is not done. While a wide span has few holes, an owner can go on with the records after a slow
record. The Rice code (Rice 1979) writes a number as a one for each multiple of 32, a zero, and five bits for the rest.
So the code takes at most six bits for each hole and one bit for each 32 offsets, for any distribution of the holes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_BITMAP = 16_384
"""Cap on the number of offsets in a bitmap. A full bitmap with 32 suspects takes 2,689 characters."""
MAX_SPAN = 131_072
"""Cap on the number of offsets in a span: as many as arrive behind a record that hangs for 20 s, at 6,500 records a
second."""
MAX_HOLES = 3_500
"""Cap on the number of holes in a span of more than MAX_BITMAP offsets.

The cap exceeds the number of records in delivery's window. This many holes and 32 suspects take 4,094 characters.
"""

MAX_SUSPECTS = 32

_BITMAP = 3
_HOLES = 4
_MARK_BYTES = 4
_NO_MARK = bytes(_MARK_BYTES)
_OFFSET_BYTES = {_BITMAP: 2, _HOLES: 3}
"""Bytes of a suspect's offset above base."""

_OPEN = 0b01
_ALONE = 0b10
_BEGUN_SHIFT = 4
"""The upper four bits of the flags hold the base-2 logarithm of `begun`, or 0 if `begun` is not known."""
_MOST_BEGUN = 1 << 15
_RUNNING = 0b1000_0000


def begun_of(records: int) -> int:
    """Round `records` up to a power of two, at least 2. A commit states `begun` in this form."""
    return min(_MOST_BEGUN, 1 << max(1, (records - 1).bit_length()))


def topic_mark(topic_id: str) -> bytes:
    """Return the four bytes that identify the topic of this UUID."""
    return hashlib.sha256(topic_id.encode()).digest()[:_MARK_BYTES]


class UndecodableLedger(ValueError):  # noqa: N818 - it says what is wrong with the text
    """The commit's metadata is not in a known format, so every offset above base is treated as not done."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A record that may kill its worker."""

    attempts: int = 0
    """The number of workers that the record killed while it ran alone."""
    running: bool = False
    """True if the record was being tried at the time of the commit."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The committed progress of a partition: base, the done offsets above base, and the state of isolation."""

    base: int
    done: int = 0
    """A bitmap: bit i stands for offset base + i. Bit 0 is never set, since base is not done."""
    open: bool = False
    """True if the owner has not released the partition."""
    alone: bool = False
    """True if the running suspect runs alone in its worker."""
    suspects: Mapping[int, Suspect] = field(default_factory=dict)
    topic: bytes | None = None
    """The mark of the topic to which the offsets belong; None if not known."""
    begun: int = 0
    """How many undone records, counted from the first one, may have begun: a power of two (see `begun_of`); 0 if not
    known."""
    limit: int = field(default=0, compare=False)
    """Until the next commit, the owner begins only records below this offset.

    The metadata does not contain this limit.
    """

    @property
    def running(self) -> tuple[int, ...]:
        """Offsets of the suspects that are being tried, in ascending order."""
        return tuple(sorted(offset for offset, suspect in self.suspects.items() if suspect.running))

    def includes(self, earlier: Progress) -> bool:
        """Return whether every offset that is done in `earlier` is also done in this progress."""
        if earlier.base > self.base:
            return False  # offset `self.base` is done in `earlier`, but not here
        return not earlier.done >> (self.base - earlier.base) & ~self.done

    def given_back(self) -> Progress:
        """Return this progress as a release commits it: the partition is not open, and no suspect is being tried."""
        tried = {offset: Suspect(suspect.attempts) for offset, suspect in self.suspects.items() if suspect.attempts}
        return Progress(self.base, self.done, suspects=tried, topic=self.topic)

    def is_of_another_topic(self, mark: bytes | None) -> bool:
        """Return whether these offsets belong to another topic than the present topic, whose mark is `mark`."""
        return None not in (self.topic, mark) and self.topic != mark

    def encode(self) -> str:
        """Return the progress as commit metadata, in the bitmap format if all offsets fit."""
        reach = max(self.done.bit_length(), 1 + max(self.suspects, default=self.base) - self.base)
        version = _BITMAP if reach <= MAX_BITMAP else _HOLES
        flags = (_OPEN if self.open else 0) | (_ALONE if self.alone else 0)
        flags |= (self.begun.bit_length() - 1 << _BEGUN_SHIFT) if self.begun else 0
        out = bytearray((version, flags, len(self.suspects)))
        out += self.topic or _NO_MARK
        for offset, suspect in sorted(self.suspects.items()):
            out += (offset - self.base).to_bytes(_OFFSET_BYTES[version], "little")
            out.append(suspect.attempts | (_RUNNING if suspect.running else 0))
        out += _bitmap(self.done) if version == _BITMAP else _holes(self.done)
        return base64.b85encode(bytes(out)).decode("ascii")

    @classmethod
    def decode(cls, base: int, metadata: str) -> Progress:
        """Read commit metadata. Empty metadata means a commit of the offset alone. Raises UndecodableLedger."""
        if not metadata:
            return cls(base)
        try:
            raw = base64.b85decode(metadata)
        except (ValueError, binascii.Error) as error:
            raise UndecodableLedger("the commit's metadata is not base85") from error
        if not raw or raw[0] not in _OFFSET_BYTES:
            raise UndecodableLedger("the commit's metadata has an unknown version")
        version, suspects_at = raw[0], 3 + _MARK_BYTES
        if len(raw) < suspects_at:
            raise UndecodableLedger("the commit's metadata has the wrong length")
        width = _OFFSET_BYTES[version]
        done_at = suspects_at + (width + 1) * raw[2]
        if raw[2] > MAX_SUSPECTS or len(raw) < done_at:
            raise UndecodableLedger("the commit's metadata has the wrong length")
        suspects = {}
        for at in range(suspects_at, done_at, width + 1):
            said = raw[at + width]
            offset = base + int.from_bytes(raw[at : at + width], "little")
            suspects[offset] = Suspect(said & ~_RUNNING, bool(said & _RUNNING))
        done = _of_bitmap(raw[done_at:]) if version == _BITMAP else _of_holes(raw[done_at:])
        mark = raw[3:suspects_at]
        topic = None if mark == _NO_MARK else mark
        begun = 1 << exponent if (exponent := raw[1] >> _BEGUN_SHIFT) else 0
        return cls(base, done, bool(raw[1] & _OPEN), bool(raw[1] & _ALONE), suspects, topic, begun)


def _bitmap(done: int) -> bytes:
    return done.to_bytes((done.bit_length() + 7) // 8, "little")


def _of_bitmap(data: bytes) -> int:
    if len(data) > MAX_BITMAP // 8:
        raise UndecodableLedger("the commit's metadata has the wrong length")
    return int.from_bytes(data, "little")


_RICE_BITS = 5
_WIDTH_BYTES = 3
_CODES = re.compile(f"(1*)0([01]{{{_RICE_BITS}}})")
_STREAM = re.compile(f"(?:{_CODES.pattern})*1{{0,7}}")


def _holes(done: int) -> bytes:
    """Encode the bitmap's width, and the length of the run of done offsets before each hole. Pad with ones."""
    width = done.bit_length()
    from_base_on = f"{done:b}"[::-1] if done else ""
    stream = "".join(_rice(len(run)) for run in from_base_on.split("0")[:-1])
    padded = stream + "1" * (-len(stream) % 8)
    return width.to_bytes(_WIDTH_BYTES, "little") + int(padded or "0", 2).to_bytes(len(padded) // 8, "big")


def _of_holes(data: bytes) -> int:
    width = int.from_bytes(data[:_WIDTH_BYTES], "little")
    stream = "".join(f"{byte:08b}" for byte in data[_WIDTH_BYTES:])
    if not _STREAM.fullmatch(stream) or width > MAX_SPAN:
        raise UndecodableLedger("the commit's metadata has an impossible list of holes")
    runs = [len(many) << _RICE_BITS | int(rest, 2) for many, rest in _CODES.findall(stream)]
    last = width - len(runs) - sum(runs)
    if last < (width > 0) or (width > 0 and (not runs or runs[0])):
        raise UndecodableLedger("the commit's metadata has an impossible list of holes")
    from_base_on = "".join("1" * run + "0" for run in runs) + "1" * last
    return int(from_base_on[::-1] or "0", 2)


def _rice(number: int) -> str:
    return "1" * (number >> _RICE_BITS) + f"0{number & (1 << _RICE_BITS) - 1:0{_RICE_BITS}b}"


def done_offsets(base: int, metadata: str) -> int:
    """Return a commit's bitmap of done offsets: bit i stands for offset base + i.

    An unreadable ledger gives an empty bitmap, because the stage then handles every record from the base on again.
    """
    try:
        return Progress.decode(base, metadata).done
    except UndecodableLedger:
        return 0
