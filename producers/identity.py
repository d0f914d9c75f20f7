"""Makes identifiers for jobs that were submitted without an identifier."""

from __future__ import annotations

import secrets

from telemetry.clock import Clock


def new_job_id(clock: Clock) -> str:
    """Return `job_` and a UUID version 7 in hexadecimal."""
    return f"job_{new_hex(clock)}"


def new_hex(clock: Clock) -> str:
    """Return a UUID version 7 in hexadecimal (RFC 9562, section 5.7): these UUIDs sort by their time of creation."""
    milliseconds = int(clock.time() * 1000) & (1 << 48) - 1
    number = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"{number:032x}"
