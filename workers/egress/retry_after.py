"""`Retry-After`: the wait that a server asks for (RFC 9110, section 10.2.3)."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
"""Longest wait that is obeyed; a longer `Retry-After` is cut to this number of seconds."""


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds to wait, 0 to MAX_RETRY_AFTER_SECONDS; None if the value is neither a number nor a date.

    `Retry-After = HTTP-date / delay-seconds`. `now` is Unix seconds.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        # Ten digits of seconds are over three hundred years; converting thousands of digits would take long.
        return min(float(value[:10]), MAX_RETRY_AFTER_SECONDS) if len(value) <= 10 else MAX_RETRY_AFTER_SECONDS
    try:
        date = parsedate_to_datetime(value)
        at = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, at - now), MAX_RETRY_AFTER_SECONDS)
