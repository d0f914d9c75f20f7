"""Progress bars on a terminal; none if standard error is a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells report it."""


@dataclass(slots=True)
class Counting:
    """A callback that takes the number of steps done so far, stores it as `done`, and moves the bar."""

    bar: Progress
    task: TaskID
    done: int = 0

    def __call__(self, done: int) -> None:
        """Store the number of steps done, and show it."""
        self.done = done
        self.bar.update(self.task, completed=done)


@contextmanager
def counting(what: str, total: int, *, awaits: str = "Kafka") -> Iterator[Counting]:
    """Show a bar for `total` steps, and yield the callback that moves it. `awaits` names the cause of a standstill."""
    with bars() as bar:
        yield Counting(bar, bar.add_task(what, total=total, awaits=awaits))


def bars(*, hidden: bool = False, above: bool = False) -> Progress:
    """Return bars for standard error, which show the failures so far, and the time left or the cause of a standstill.

    A task's field `failed` is the number of failures; `awaits` names the cause of a standstill, by default Kafka.
    `hidden` hides the bars, for output that they would garble on the same terminal. With `above`, lines on standard
    output are shown above the bars.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cli.shared.bar_columns import FailedColumn, OutlookColumn

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
        # Rich sends redirected lines to standard error, but a program reads ids and results from standard output.
        redirect_stdout=above,
    )
