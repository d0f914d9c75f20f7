"""Progress bars on a terminal; none if standard error is a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell gives it."""


@dataclass(slots=True)
class Counting:
    """A callback that takes the number done so far, and keeps the last one."""

    bar: Progress
    task: TaskID
    done: int = 0

    def __call__(self, done: int) -> None:
        """Note the number done."""
        self.done = done
        self.bar.update(self.task, completed=done)


@contextmanager
def counting(what: str, total: int) -> Iterator[Counting]:
    """Show a bar for `total` steps."""
    with bars() as bar:
        yield Counting(bar, bar.add_task(what, total=total))


def bars(*, hidden: bool = False, above: bool = False) -> Progress:
    """Bars on standard error, with the failures so far, and the time left or the cause of a standstill.

    A task's field `failed` is the number of failures; `awaits` names the cause of a standstill, by default Kafka.
    `hidden` is for data that a bar would spoil on the same terminal. With `above`, lines on standard output stand above
    the bars on the same terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from console.bar_columns import FailedColumn, OutlookColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        OutlookColumn(),
        FailedColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        # Redirected lines go to standard error. Ids and results that a program reads must not.
        redirect_stdout=above,
    )
