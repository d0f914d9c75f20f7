"""Messages about many lines or jobs: one for each reason, with the first places and a count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from console.errors import say

SHOWN = 20
"""Messages of one kind that a command shows; it counts the rest."""

_PLACES = 3


def first_of(places: Sequence[object]) -> str:
    """The first few places, and how many more there are."""
    more = len(places) - _PLACES
    return ", ".join(map(str, places[:_PLACES])) + (f" and {more} more" if more > 0 else "")


def lines_named(numbers: Sequence[int]) -> str:
    """Lines of a file, the first few by number."""
    return f"line{'s' if len(numbers) > 1 else ''} {first_of(numbers)}"


def say_by_line(groups: Mapping[str, Sequence[int]]) -> None:
    """Say each message once with its lines, that of the lowest line first."""
    for message, numbers in sorted(groups.items(), key=lambda group: group[1][0])[:SHOWN]:
        say(f"{lines_named(numbers)}: {message}")
    say_more(len(groups))


def say_more(found: int, shown: int = SHOWN) -> None:
    """Count the messages that are not shown, if there are any."""
    if found > shown:
        say(f"and {found - shown} more")
