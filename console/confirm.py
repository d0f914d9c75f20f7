"""Asks questions before a command acts, but only at a terminal."""

from __future__ import annotations

import sys

import typer

from console.errors import FAILED, fail, say


def confirmed(question: str, *, yes: bool) -> None:
    """Ask the question, and end the command unless the answer is yes. With `yes` or without a terminal, ask nothing."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(question, err=True):
        raise fail("nothing was done", FAILED)


def told_of_change(counted: int, found: int) -> None:
    """Print both numbers if `found`, which was counted after the question, differs from `counted`."""
    if found != counted:
        say(f"{counted} were counted before the question, and {found} after it: another process has acted meanwhile")


def limited(counted: int, limit: int | None) -> int:
    """Return how many of `counted` records to put back: at most `limit`. Print how many are left out."""
    if limit is None or counted <= limit:
        return counted
    say(f"--limit: {limit} of them are put back, and {counted - limit} are left as they are")
    return limit
