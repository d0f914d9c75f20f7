"""A question before a command acts: put to a person at a terminal, and to nobody else."""

from __future__ import annotations

import sys

import typer

from console.errors import FAILED, fail


def confirmed(question: str, *, yes: bool) -> None:
    """Return where the answer is yes. A script is not asked: it has said what it wants. Ends the command otherwise."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(question, err=True):
        raise fail("nothing was done", FAILED)
