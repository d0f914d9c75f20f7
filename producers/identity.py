"""Makes identifiers for jobs that were submitted without an identifier."""

from __future__ import annotations

import os
import random

from telemetry.clock import Clock

_DRAWN = random.Random()  # noqa: S311 - an id is no secret
"""A generator of its own, which no other code seeds, and which a fork does not repeat.

A system call for each id would make a busy thread wait for the interpreter's lock twice an id.
"""
os.register_at_fork(after_in_child=_DRAWN.seed)


def new_job_id(clock: Clock) -> str:
    """Return `job_` and a UUID version 7 in hexadecimal."""
    return f"job_{new_hex(clock)}"


def new_hex(clock: Clock) -> str:
    """Return a UUID version 7 in hexadecimal (RFC 9562, section 5.7): these UUIDs sort by their time of creation."""
    milliseconds = int(clock.time() * 1000) & (1 << 48) - 1
    drawn = _DRAWN.getrandbits(74)
    number = milliseconds << 80 | 0x7 << 76 | drawn >> 62 << 64 | 0b10 << 62 | drawn & (1 << 62) - 1
    return f"{number:032x}"
