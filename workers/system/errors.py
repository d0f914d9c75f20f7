"""The base class of errors that end a process."""

from __future__ import annotations


class ProcessError(Exception):
    """The process cannot do its work; the error's text names the reason and the fix."""
