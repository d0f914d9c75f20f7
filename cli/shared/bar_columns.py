"""Columns of a progress bar: failures so far, and the time left, or the cause of a standstill."""

from __future__ import annotations

from rich.progress import ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.text import Text

STANDSTILL_SECONDS = 5.0


class FailedColumn(ProgressColumn):
    """Shows the task's field `failed`, as in `3 failed`; empty while the field is 0."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        failed = task.fields.get("failed", 0)
        return Text(f"{failed} failed" if failed else "", style="red")


class OutlookColumn(ProgressColumn):
    """Shows `ETA 0:01:40` or, after five seconds without progress, `waiting for` and the task's field `awaits`."""

    def __init__(self) -> None:
        super().__init__()
        self._remaining = TimeRemainingColumn()
        self._moved: dict[TaskID, tuple[float, float]] = {}
        """Each task's completed amount, and when this amount last changed, in seconds since the task's start."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        if task.finished:
            return Text("")
        if self._stands_still(task):
            return Text(f"waiting for {task.fields.get('awaits', 'Kafka')}", style="yellow")
        return Text("ETA ").append_text(self._remaining.render(task))

    def _stands_still(self, task: Task) -> bool:
        now = task.elapsed or 0.0
        completed, since = self._moved.get(task.id, (-1.0, now))
        if completed != task.completed:
            since = now
            self._moved[task.id] = task.completed, now
        return now - since >= STANDSTILL_SECONDS
