"""Points in time as people write them on a command line: ISO 8601, or so long before now."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_AGO = re.compile(r"-(\d{1,9})(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class NotATime(ValueError):  # noqa: N818 - it names what the text is
    """Not a time: ISO 8601 as in 2026-03-01T14:00Z (UTC unless it says otherwise), or -90s, -30m, -2h, -7d."""


def parse_time(text: str, now: float) -> int:
    """Unix milliseconds. `now` is Unix seconds. Raises NotATime."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            at = now - int(ago[1]) * _SECONDS[ago[2]]
        else:
            said = datetime.fromisoformat(text.strip())
            at = (said if said.tzinfo is not None else said.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise NotATime(NotATime.__doc__) from None
    if at < 0:
        raise NotATime(NotATime.__doc__)
    return round(at * 1000)


def show_time(at_ms: int) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
