"""Errors with which a process ends before it serves."""

from __future__ import annotations


class ProcessError(Exception):
    """The process cannot do its work; the text names the reason and the fix."""
