"""`Retry-After`: the wait that a server asks for (RFC 9110, section 10.2.3)."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_SECONDS = 24 * 3600.0
"""Longest wait; a longer `Retry-After` is cut to it."""


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds to wait, 0 to MAX_RETRY_AFTER_SECONDS; None for a value that is neither seconds nor a date.

    `Retry-After = HTTP-date / delay-seconds`. `now` is Unix seconds.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        # Ten digits are over three hundred years, and int() takes long over thousands of them.
        return min(float(value[:10]), MAX_RETRY_AFTER_SECONDS) if len(value) <= 10 else MAX_RETRY_AFTER_SECONDS
    try:
        date = parsedate_to_datetime(value)
        at = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, at - now), MAX_RETRY_AFTER_SECONDS)
