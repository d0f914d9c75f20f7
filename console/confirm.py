"""A question before a command acts, asked only at a terminal."""

from __future__ import annotations

import sys

import typer

from console.errors import FAILED, fail, say


def confirmed(question: str, *, yes: bool) -> None:
    """Return if the answer is yes, else end the command. With `yes`, or without a terminal, there is no question."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(question, err=True):
        raise fail("nothing was done", FAILED)


def told_of_change(counted: int, found: int) -> None:
    """Say so if the act met another number than the count before the question."""
    if found != counted:
        say(f"{counted} were counted before, and {found} were there then: somebody else has acted meanwhile")


def limited(counted: int, limit: int | None) -> int:
    """The number to put back, at most `limit`. Says so if some are left out."""
    if limit is None or counted <= limit:
        return counted
    say(f"--limit: {limit} of them are put back, and {counted - limit} are left as they are")
    return limit
