"""Times on the command line."""

from __future__ import annotations

from cli.shared.errors import BAD_INPUT, fail

TIME = "TIME"
"""The placeholder for a time in help texts."""
_YEAR_SECONDS = 366 * 86_400.0
HELP = "ISO 8601, or how long ago: -90s, -30m, -2h, -7d."


def checked_time(option: str, text: str | None) -> int | None:
    """Return the time in Unix milliseconds, or end the command if the text is no time."""
    if text is None:
        return None
    from producers.times import NotATime, parse_time
    from telemetry.clock import SystemClock

    try:
        return parse_time(text, SystemClock().time())
    except NotATime as error:
        raise fail(f"{option}: {str(error)[0].lower()}{str(error)[1:]}", BAD_INPUT) from None


DURATION_HELP = "A duration: 90s, 30m, 24h, 7d."


def checked_duration(option: str, text: str) -> float:
    """Return the duration in seconds. End the command if the text is no duration, or one of more than 366 days."""
    from producers.times import NotADuration, parse_duration

    try:
        seconds = parse_duration(text)
    except NotADuration as error:
        raise fail(f"{option}: {str(error)[0].lower()}{str(error)[1:]}", BAD_INPUT) from None
    if seconds > _YEAR_SECONDS:
        raise fail(f"{option}: longer than 366 days", BAD_INPUT)
    return seconds
