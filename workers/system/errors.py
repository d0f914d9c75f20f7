"""The base class of errors that end a process."""

from __future__ import annotations

from schemas.operator_error import OperatorError


class ProcessError(OperatorError):
    """The process cannot do its work; the error's text names the reason and the fix."""
