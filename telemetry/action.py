"""The form of a log action's declaration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["debug", "info", "warning", "error", "critical"]


@dataclass(frozen=True, slots=True)
class Action:
    """One action of the log."""

    level: Level
    """The highest level of the lines with this action."""
    event: str
    """The event, and the process's own response to it."""
    remedy: str = ""
    """The operator's next step; empty if none is needed."""
