"""Points in time on a command line: ISO 8601, or a duration before now."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_DURATION = re.compile(r"(\d{1,9})(s|m|h|d|w)")
_EPOCH = datetime.fromtimestamp(0, UTC)
_FIRST_MS, _LAST_MS = (
    (end.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1) for end in (datetime.min, datetime.max)
)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class NotATime(ValueError):  # noqa: N818 - named after the text
    """Not a time: ISO 8601 as in 2026-03-01T14:00Z (UTC unless it says otherwise), or -90s, -30m, -2h, -7d."""


class NotADuration(ValueError):  # noqa: N818
    """Not a duration: 90s, 30m, 24h, 7d or 2w, for example."""


def parse_duration(text: str) -> float:
    """Convert a duration to seconds. Raises NotADuration."""
    parts = _DURATION.fullmatch(text.strip())
    if parts is None:
        raise NotADuration(NotADuration.__doc__)
    return float(int(parts[1]) * _SECONDS[parts[2]])


def parse_time(text: str, now: float) -> int:
    """Convert a time to Unix milliseconds. `now` is in Unix seconds. Raises NotATime."""
    text = text.strip()
    try:
        if text.startswith("-"):
            at = now - parse_duration(text[1:])
        else:
            said = datetime.fromisoformat(text)
            at = (said if said.tzinfo is not None else said.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise NotATime(NotATime.__doc__) from None
    if at < 0:
        raise NotATime(NotATime.__doc__)
    return round(at * 1000)


def show_time(at_ms: int) -> str:
    """Format a time as ISO 8601 in UTC, with milliseconds. Times outside the years 1 to 9999 are clamped."""
    at = _EPOCH + timedelta(milliseconds=min(max(at_ms, _FIRST_MS), _LAST_MS))
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
