"""The base of the errors that end a command, or a process, with one line for the person who started it."""

from __future__ import annotations


class OperatorError(Exception):
    """Something outside the program is wrong. The text names it and the fix, and shows no secret."""

    exit_status: int = 1
    """The command's exit status: 1 for work that could not be done, 2 for wrong options or settings."""
