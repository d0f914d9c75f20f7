"""Messages about many lines or jobs: one for each reason, which names the first lines or jobs and counts the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from console.errors import say

SHOWN = 20
"""A command shows at most this many messages of one kind, and counts the rest."""

PLACES = 3
"""A message names at most this many lines or jobs, and counts the rest."""


def counted(first: Sequence[object], count: int) -> str:
    """Return the first few of `count` items, and the number of the others, as text."""
    more = count - PLACES
    return ", ".join(map(str, first[:PLACES])) + (f" and {more} more" if more > 0 else "")


def lines_named(numbers: Sequence[int], count: int | None = None) -> str:
    """Name the first few lines of a file, and count the others. `count` is the total if `numbers` has only some."""
    count = len(numbers) if count is None else count
    return f"line{'s' if count > 1 else ''} {counted(numbers, count)}"


def say_by_line(groups: Mapping[str, Sequence[int]]) -> None:
    """Print each message once with its lines, in the order of their first lines."""
    for message, numbers in sorted(groups.items(), key=lambda group: group[1][0])[:SHOWN]:
        say(f"{lines_named(numbers)}: {message}")
    say_more(len(groups))


def say_more(found: int, shown: int = SHOWN) -> None:
    """Print the number of messages that are not shown, if there are any."""
    if found > shown:
        say(f"and {found - shown} more")
