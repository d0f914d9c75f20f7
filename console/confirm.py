"""A question before a command acts: put to a person at a terminal, and to nobody else."""

from __future__ import annotations

import sys

import typer

from console.errors import FAILED, fail, say


def confirmed(question: str, *, yes: bool) -> None:
    """Return where the answer is yes. A script is not asked: it has said what it wants. Ends the command otherwise."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(question, err=True):
        raise fail("nothing was done", FAILED)


def told_of_change(counted: int, found: int) -> None:
    """Say where the act has met something else than the count before the question."""
    if found != counted:
        say(f"{counted} were counted before, and {found} were there then: somebody else has acted meanwhile")


def limited(counted: int, limit: int | None) -> int:
    """How many of those that were counted are put back; says so where these are not all."""
    if limit is None or counted <= limit:
        return counted
    say(f"--limit: {limit} of them are put back, and {counted - limit} are left as they are")
    return limit
