"""Makes identifiers for jobs that were submitted without an identifier."""

from __future__ import annotations

import random

from telemetry.clock import Clock


def new_job_id(clock: Clock) -> str:
    """Return `job_` and a UUID version 7 in hexadecimal."""
    return f"job_{new_hex(clock)}"


def new_hex(clock: Clock) -> str:
    """Return a UUID version 7 in hexadecimal (RFC 9562, section 5.7): these UUIDs sort by their time of creation."""
    milliseconds = int(clock.time() * 1000) & (1 << 48) - 1
    # An id is no secret. Python seeds this generator from the system, also after a fork; a system call for each id
    # would make a busy thread wait for the interpreter's lock twice an id.
    drawn = random.getrandbits(74)
    number = milliseconds << 80 | 0x7 << 76 | drawn >> 62 << 64 | 0b10 << 62 | drawn & (1 << 62) - 1
    return f"{number:032x}"
