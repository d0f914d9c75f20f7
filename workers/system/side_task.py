"""Background tasks that run beside a process's stages."""

from __future__ import annotations

from typing import Protocol


class SideTask(Protocol):
    """A background task that the stages depend on: without the task, they act on stale data.

    The default methods fit a task that runs on the event loop and that no job waits for.
    """

    @property
    def alive(self) -> bool:
        """True if the task still runs its loop. The default is always True: `LoopBeat` detects a blocked event loop."""
        return True

    def reasons(self) -> list[str]:
        """Return the reasons why the task does not do its work now. The default is an empty list."""
        return []

    async def ended(self) -> None:
        """Run until cancelled. Raises the error that ends the task; this error also ends the process."""
        ...
